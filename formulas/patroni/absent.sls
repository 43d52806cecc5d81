# Patroni no longer has this machine's server. The last member's goes on under Debian's unit; a
# standby's stops, and its data folder is for a person to delete.
{%- from 'patroni/map.jinja' import patroni, config, config_dir, data_dir, drop_in, program with context %}

patroni-retired:
  patroni.retired:
    - name: {{ patroni.scope }}
    - cluster: {{ patroni.cluster }}
    - config: {{ config }}

patroni-absent-files:
  file.absent:
    - names:
        - {{ config }}
        - {{ config_dir }}/tls.crt
        - {{ config_dir }}/tls.key
        - {{ config_dir }}/tls.authority
        - {{ data_dir }}.pgpass
        - {{ drop_in }}
        - {{ program }}
    - require:
        - patroni: patroni-retired
