# On the builder: the release as one archive that every machine unpacks. Needs no running Synapse.
{%- from 'synapse/map.jinja' import synapse with context %}
{%- set build = synapse.build %}

synapse-build-packages:
  pkg.installed:
    - pkgs: {{ build.packages | json }}

synapse-built:
  synapse_release.built:
    - name: {{ synapse.version | string | json }}
    - requirements: {{ build.requirements }}
    - directory: {{ build.directory }}
    - find_links: {{ build.find_links | json }}
    - no_index: {{ build.no_index | json }}
    - require:
        - pkg: synapse-build-packages
