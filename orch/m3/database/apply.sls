# M3.database: the database on a machine of its own.
{%- from 'orch/part.jinja' import applied with context %}

include:
  - orch.m3.database.precheck
{{ applied('database') }}
