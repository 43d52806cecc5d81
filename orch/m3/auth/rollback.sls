# Back to where it was found, until it is finalized.
{%- from 'orch/part.jinja' import taken_back with context %}
{{ taken_back('auth') }}
