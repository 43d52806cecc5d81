# M3.media: the media store on a machine of its own.
{%- from 'orch/part.jinja' import applied with context %}

include:
  - orch.m3.media.precheck
{{ applied('media') }}
