# An event when a Redis or a sentinel is away, or another one is the master: the beacon redis_set.
sentinel-alarm-synced:
  saltutil.sync_beacons:
    - refresh: true

sentinel-alarm:
  beacon.present:
    - name: redis_set
    - save: true
    - interval: 15
    - require:
        - saltutil: sentinel-alarm-synced
