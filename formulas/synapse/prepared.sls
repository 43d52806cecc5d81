# Everything but the running service: for the days before a window. Touches neither
# /opt/synapse/current nor what runs or starts at boot.
include:
  - synapse.installed
  - synapse.configured
