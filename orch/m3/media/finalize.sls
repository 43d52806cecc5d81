# What the way back needs is retired; first: salt-run milestone.arm m3.media.finalize
{%- from 'orch/m3/part.jinja' import finalized with context %}
{{ finalized('media') }}
