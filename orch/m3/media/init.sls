# salt-run state.orchestrate orch.m3.media
{%- from 'orch/part.jinja' import achieved with context %}

include:
  - orch.m3.media.apply
{%- if not pillar.saltworks.achieved['m3.media'] %}
  - orch.m3.media.verify

extend:
  m3-media-verified:
    milestone:
      - require:
          - salt: m3-media-converged

{{ achieved('media') }}
{%- endif %}
