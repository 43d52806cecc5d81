{#- Not before there are workers: without them there is nobody to go on with. #}
# How long the kernel believes in a peer that says nothing (tcp(7)). A worker's machine that has lost
# its power or its network closes no connection, and whoever waits for it would wait for all of
# proxy_read_timeout. Idle: 10 + 3 * 5 s. With data on its way: 8 tries are some 100 s, the least that
# RFC 1122, 4.2.3.5, wants; Linux's 15 are a quarter of an hour.
{%- set settings = {
  'net.ipv4.tcp_keepalive_time': 10,
  'net.ipv4.tcp_keepalive_intvl': 5,
  'net.ipv4.tcp_keepalive_probes': 3,
  'net.ipv4.tcp_retries2': 8,
} %}
{%- for name, value in settings | dictsort %}

nginx-vanished-{{ name }}:
  sysctl.present:
    - name: {{ name }}
    - value: {{ value }}
    - config: /etc/sysctl.d/60-saltworks-nginx.conf
{%- endfor %}
