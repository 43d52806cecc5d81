# M2: Synapse on a machine of its own, and nginx on another.
{%- set machines = pillar.saltworks.machines %}
{%- set all = [machines.legacy, machines.proxy, machines.synapse] %}

include:
  - orch.m2.precheck

{%- if not pillar.saltworks.achieved.m2 %}

m2-begun:
  milestone.begun:
    - name: m2
    - require:
        - milestone: m2-prechecked

{%- if not pillar.saltworks.moving %}

m2-host-key:
  milestone.knows_host_key:
    - name: {{ machines.legacy }}
    - require:
        - milestone: m2-begun

# The relays first: the other two machines reach through them what stays behind.
m2-legacy-prepared:
  salt.state:
    - tgt: {{ machines.legacy }}
    - highstate: true
    - queue: true
    - require:
        - milestone: m2-host-key

m2-new-machines:
  salt.state:
    - tgt: {{ [machines.proxy, machines.synapse] | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - salt: m2-legacy-prepared

m2-copied:
  salt.state:
    - tgt: {{ machines.synapse }}
    - sls: transfer.pulled
    - queue: true
    - require:
        - salt: m2-new-machines

{%- if pillar.saltworks.front != machines.proxy %}

m2-announced:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.announced
    - queue: true
    - require:
        - salt: m2-copied
    - require_in:
        - milestone: m2-front
{%- endif %}

# From here on the old nginx passes everything on to the proxy.
m2-front:
  milestone.placed:
    - name: m2
    - front: {{ machines.proxy }}
    - require:
        - salt: m2-copied

m2-legacy-passes-on:
  salt.state:
    - tgt: {{ machines.legacy }}
    - highstate: true
    - queue: true
    - require:
        - milestone: m2-front

m2-copied-again:
  salt.state:
    - tgt: {{ machines.synapse }}
    - sls: transfer.pulled
    - queue: true
    - require:
        - salt: m2-legacy-passes-on

{%- endif %}

# A run that died while the door was shut is gone on with at once: people wait behind it, and
# what stands before had been done when that was recorded.
m2-handed-over:
  milestone.handed_over:
    - name: m2
    - require:
        - {{ 'milestone: m2-begun' if pillar.saltworks.moving else 'salt: m2-copied-again' }}
{%- endif %}

m2-converged:
  salt.state:
    - tgt: {{ all | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: {{ 'm2-prechecked' if pillar.saltworks.achieved.m2 else 'm2-handed-over' }}
