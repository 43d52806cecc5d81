{%- from 'relay/map.jinja' import firewall with context %}

relay-units-gone:
  unit_set.only:
    - name: saltworks-relay-
    - units: []

relay-rules-gone:
  file.absent:
    - name: /etc/saltworks/relay.nft
    - require:
        - unit_set: relay-units-gone
