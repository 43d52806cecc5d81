# Nothing is retired: it is recorded that there is no way back any more.
# First: salt-run milestone.arm m4.workers.finalize
{%- from 'orch/part.jinja' import finalized with context %}
{{ finalized('redis') }}
