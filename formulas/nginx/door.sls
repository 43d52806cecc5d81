# The held sockets and every place that the door may open to; nothing here opens or closes it.
{%- from 'nginx/map.jinja' import site, door, held, inner, routing, conf_dir, unit_dir, hostport with context %}

include:
  - nginx.installed

nginx-directory:
  file.directory:
    - name: {{ conf_dir }}
    - mode: '0755'
    - require:
        - pkg: nginx-packages

nginx-door-closed:
  file.managed:
    - name: {{ conf_dir }}/door/closed.conf
    - source: salt://nginx/files/upstreams.conf.jinja
    - template: jinja
    - mode: '0644'
    - context:
        target: {}
    - makedirs: true
    - require:
        - file: nginx-directory

{%- for name, target in door.targets | dictsort %}

nginx-door-target-{{ name }}:
  file.managed:
    - name: {{ conf_dir }}/door/{{ name }}.conf
    - source: salt://nginx/files/upstreams.conf.jinja
    - template: jinja
    - mode: '0644'
    - context:
        target: {{ target | json }}
    - makedirs: true
    - require:
        - file: nginx-directory

nginx-door-environment-{{ name }}:
  file.managed:
    - name: /etc/saltworks/door/{{ name }}.env
    - mode: '0644'
    - contents:
{%- for way, upstream in held.items() %}
{%- if routing %}
        - {{ upstream.variable }}={{ hostport('127.0.0.1', inner[way]) }}
        - {{ upstream.variable }}_MAIN={{ hostport(target.address, target[upstream.port]) }}
{%- else %}
        - {{ upstream.variable }}={{ hostport(target.address, target[upstream.port]) }}
{%- endif %}
{%- endfor %}
{%- for name, address in routing.get('servers', {}) | dictsort(by='value') %}
        - FENCE_{{ loop.index }}={{ name }}
{%- endfor %}
    - makedirs: true
    - require:
        - file: nginx-directory
{%- endfor %}

# A target that is no longer declared is nothing the door can open to.
nginx-door-only-declared-targets:
  file.directory:
    - name: {{ conf_dir }}/door
    - mode: '0755'
    - clean: true
    - require:
        - file: nginx-door-closed
{%- for name in door.targets | sort %}
        - file: nginx-door-target-{{ name }}
{%- endfor %}

{%- for upstream in held.values() %}
{%- for kind in ('socket', 'service') %}

nginx-door-{{ upstream.unit }}-{{ kind }}:
  file.managed:
    - name: {{ unit_dir }}/{{ upstream.unit }}.{{ kind }}
    - source: salt://nginx/files/door.{{ kind }}.jinja
    - template: jinja
    - mode: '0644'
    - context:
        unit: {{ upstream.unit }}
        variable: {{ upstream.variable }}
{%- endfor %}

nginx-door-{{ upstream.unit }}-listens:
  service.running:
    - name: {{ upstream.unit }}.socket
    - enable: true
    - require:
        - file: nginx-door-{{ upstream.unit }}-socket
        - file: nginx-door-{{ upstream.unit }}-service
{%- endfor %}

{%- if site.kind == 'synapse' %}

nginx-door-first-target:
  door.first_target:
    - name: {{ door.target }}
    - require:
{%- for name in door.targets | sort %}
        - file: nginx-door-target-{{ name }}
        - file: nginx-door-environment-{{ name }}
{%- endfor %}
        - file: nginx-door-only-declared-targets
{%- for upstream in held.values() %}
        - service: nginx-door-{{ upstream.unit }}-listens
{%- endfor %}
{%- endif %}
