# What the way back needs is retired; first: salt-run milestone.arm m3.auth.finalize
{%- from 'orch/part.jinja' import finalized with context %}
{{ finalized('auth') }}
