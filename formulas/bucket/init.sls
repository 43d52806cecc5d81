{%- from 'bucket/map.jinja' import bucket with context %}

bucket-present:
  s3_bucket.present:
    - name: {{ bucket.name | json }}
    - region: {{ bucket.region | json }}
    - account: {{ bucket.account | json }}
    - endpoint_url: {{ bucket.endpoint_url | json }}
    - ca: {{ bucket.ca | json }}
    - prefix: {{ bucket.prefix | json }}
    - kms_key: {{ bucket.encryption.kms_key | json }}
    - bucket_key: {{ bucket.encryption.bucket_key | json }}
    - noncurrent_days: {{ bucket.lifecycle.noncurrent_days | json }}
    - upload_days: {{ bucket.lifecycle.upload_days | json }}
    - tags: {{ bucket.tags | json }}
    - without: {{ bucket.without | json }}
    - credentials_pillar: bucket:credentials
