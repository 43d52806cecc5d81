{%- from 'firewall/map.jinja' import ports, rules, unit_dir, unit with context %}

include:
{%- if not ports %}
  - firewall.absent
{%- else %}
  - firewall.installed

firewall-directory:
  file.directory:
    - name: /etc/saltworks
    - mode: '0755'

firewall-rules:
  file.managed:
    - name: {{ rules }}
    - source: salt://firewall/files/firewall.nft.jinja
    - template: jinja
    - mode: '0644'
    - check_cmd: nft --check --file
    - require:
        - pkg: firewall-packages
        - file: firewall-directory

firewall-unit:
  file.managed:
    - name: {{ unit_dir }}/{{ unit }}.service
    - source: salt://firewall/files/firewall.service.jinja
    - template: jinja
    - mode: '0644'
{%- endif %}
