# Back to one process, once every machine of workers is gone, until it is finalized.
{%- from 'orch/part.jinja' import taken_back with context %}
{{ taken_back('redis') }}
