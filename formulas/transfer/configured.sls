{%- from 'transfer/map.jinja' import transfer, directory, authorized, sshd_config with context %}

include:
  - transfer.installed

transfer-directory:
  file.directory:
    - name: {{ directory }}
    - mode: '0755'
    - makedirs: true
    - require:
        - pkg: transfer-packages

transfer-authorized-keys:
{%- if transfer.offers %}
  file.managed:
    - name: {{ authorized }}
    - source: salt://transfer/files/authorized_keys.jinja
    - template: jinja
    - mode: '0600'
    - require:
        - file: transfer-directory
{%- else %}
  file.absent:
    - name: {{ authorized }}
{%- endif %}

{%- for name, offer in transfer.offers | dictsort if offer.get('make') %}

transfer-offered-{{ name }}:
  file.directory:
    - name: {{ offer.directory }}
    - mode: '0700'
    - makedirs: true
{%- endfor %}

transfer-sshd:
{%- if transfer.offers %}
  file.managed:
    - name: {{ sshd_config }}
    - source: salt://transfer/files/sshd.conf.jinja
    - template: jinja
    - mode: '0644'
    - check_cmd: /usr/sbin/sshd -t -h /etc/ssh/ssh_host_ed25519_key -f
    - require:
        - file: transfer-authorized-keys
{%- else %}
  file.absent:
    - name: {{ sshd_config }}
{%- endif %}

transfer-known-hosts:
{%- if transfer.pulls %}
  file.managed:
    - name: {{ directory }}/known_hosts
    - contents_pillar: transfer:host_key
    - mode: '0644'
    - require:
        - file: transfer-directory
{%- else %}
  file.absent:
    - name: {{ directory }}/known_hosts
{%- endif %}

{%- for name in transfer.pulls | sort %}

transfer-key-{{ name }}:
  file.managed:
    - name: {{ directory }}/{{ name }}.key
    - contents_pillar: transfer:pulls:{{ name }}:key
    - mode: '0600'
    - show_changes: false
    - require:
        - file: transfer-directory
{%- endfor %}

# A key that is no longer declared opens nothing any more, and is not kept.
transfer-only-declared:
  file.directory:
    - name: {{ directory }}
    - clean: true
    - require:
        - file: transfer-authorized-keys
        - file: transfer-known-hosts
{%- for name in transfer.pulls | sort %}
        - file: transfer-key-{{ name }}
{%- endfor %}
