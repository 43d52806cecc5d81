# Reloaded, never restarted: as Patroni ends, PostgreSQL ends with it.
{%- from 'patroni/map.jinja' import patroni, config with context %}

include:
  - patroni.configured

patroni-attuned:
  patroni.attuned:
    - name: {{ patroni.scope }}
    - cluster: {{ patroni.cluster }}
    - durability: {{ patroni.durability }}
    - maximum_lag: {{ patroni.maximum_lag_on_failover }}
    - slots: {{ patroni.slots | json }}
    - adopts: {{ patroni.adopts | json }}
    - config: {{ config }}
    - require:
        - file: patroni-config

{%- if patroni.adopts %}

# Before Patroni is there: then it is the leader whose roles others get by their copy.
patroni-roles-first:
  patroni.roles:
    - name: first
    - cluster: {{ patroni.cluster }}
    - reads_by: {{ patroni.reads_by | json }}
    - require:
        - patroni: patroni-attuned
    - require_in:
        - patroni: patroni-settled
{%- endif %}

patroni-settled:
  patroni.settled:
    - name: {{ patroni.cluster }}
    - cluster: {{ patroni.cluster }}
    - adopts: {{ patroni.adopts | json }}
    - config: {{ config }}
    - require:
        - patroni: patroni-attuned
        - file: patroni-hba
        - module: patroni-unit-loaded

patroni-running:
  service.running:
    - name: patroni
    - enable: true
    - reload: true
    - watch:
        - file: patroni-config
        - file: patroni-crt
        - file: patroni-key
        - file: patroni-authority
        - file: patroni-hba
        - file: postgres-config
        - file: postgres-server-crt
        - file: postgres-server-key
    - require:
        - patroni: patroni-settled

patroni-streaming:
  patroni.streaming:
    - name: {{ patroni.name }}
    - seconds: {{ patroni.copied_within }}
    - config: {{ config }}
    - require:
        - service: patroni-running

# Patroni has written postgresql.conf, but tells a server that it takes over nothing of it.
patroni-reloaded:
  module.run:
    - service.reload:
        - patroni
    - onchanges:
        - patroni: patroni-settled
    - require:
        - patroni: patroni-streaming

# Of the leader alone; a standby has nothing to do.
patroni-roles:
  patroni.roles:
    - name: given
    - cluster: {{ patroni.cluster }}
    - reads_by: {{ patroni.reads_by | json }}
    - require:
        - patroni: patroni-streaming
