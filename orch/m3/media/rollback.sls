# Back to where it was found, until it is finalized.
{%- from 'orch/m3/part.jinja' import taken_back with context %}
{{ taken_back('media') }}
