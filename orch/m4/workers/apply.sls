# Redis on a machine of its own, Synapse's main process told of it behind a held door. Machines of
# workers join afterwards, and with the first one the front routes (orch.worker.join).
{%- from 'orch/part.jinja' import applied with context %}

include:
  - orch.m4.workers.precheck
{{ applied('redis') }}
