# What the way back needs is retired; first: salt-run milestone.arm m3.media.finalize
{%- from 'orch/part.jinja' import finalized with context %}
{{ finalized('media') }}
