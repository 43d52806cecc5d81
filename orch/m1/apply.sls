# M1: Synapse to the release of the cluster map, behind the front door.
{%- set machines = pillar.saltworks.machines %}
{%- set achieved = pillar.saltworks.achieved.m1 %}

include:
  - orch.m1.precheck

{%- if achieved %}

m1-converged:
  salt.state:
    - tgt: {{ [machines.master, machines.legacy] | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: m1-prechecked
{%- else %}

m1-begun:
  milestone.begun:
    - name: m1
    - require:
        - milestone: m1-prechecked

m1-release-built:
  salt.state:
    - tgt: {{ machines.master }}
    - sls: synapse.built
    - queue: true
    - require:
        - milestone: m1-begun

m1-prepared:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.upgrade.prepared
    - queue: true
    - require:
        - salt: m1-release-built

m1-backed-up:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.upgrade.backed_up
    - queue: true
    - require:
        - salt: m1-prepared

m1-window:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.upgrade.window
    - queue: true
    - require:
        - salt: m1-backed-up

{%- if not opts.get('test') %}

# Before the door opens nothing is lost by going back; after that `back` refuses by itself.
# `onfail` alone would also act on a window that was never reached.
# Not in test mode: there what has not failed yet counts as failed.
m1-back:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.upgrade.back
    - queue: true
    - require:
        - salt: m1-backed-up
    - onfail:
        - salt: m1-window

m1-recorded-back:
  milestone.rolled_back:
    - name: m1
    - require:
        - salt: m1-back
    - onfail:
        - salt: m1-window
{%- endif %}

m1-placed:
  milestone.placed:
    - name: m1
    - managed: true
    - require:
        - salt: m1-window

m1-converged:
  salt.state:
    - tgt: {{ [machines.master, machines.legacy] | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: m1-placed

m1-backup-released:
  salt.state:
    - tgt: {{ machines.legacy }}
    - sls: roles.legacy.upgrade.released
    - queue: true
    - require:
        - salt: m1-converged
{%- endif %}
