# M3.auth: the password auth backend on a machine of its own.
{%- from 'orch/part.jinja' import applied with context %}

include:
  - orch.m3.auth.precheck
{{ applied('auth') }}
