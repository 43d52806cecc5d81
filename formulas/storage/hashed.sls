# Size and SHA-256 of every object, from the disk, where who has the keys can read them.
{%- from 'storage/map.jinja' import storage, bucket_dir, endpoint with context %}

storage-hashed:
  storage.hashed:
    - name: {{ bucket_dir }}
    - endpoint: {{ endpoint }}
    - target: {{ storage.ledger_bucket }}/{{ storage.ledger_key }}
