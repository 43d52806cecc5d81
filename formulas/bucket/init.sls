{%- from 'bucket/map.jinja' import bucket, unknown with context %}

bucket-present:
  s3_bucket.present:
    - name: {{ bucket.name | json }}
    - region: {{ bucket.region | json }}
    - account: {{ bucket.account | json }}
    - endpoint_url: {{ bucket.endpoint_url | json }}
    - ca: {{ bucket.ca | json }}
    - prefix: {{ bucket.prefix | json }}
    - kms_key: {{ bucket.kms_key | json }}
    - bucket_key: {{ bucket.bucket_key | json }}
    - noncurrent_days: {{ bucket.noncurrent_days | json }}
    - upload_days: {{ bucket.upload_days | json }}
    - tags: {{ bucket.tags | json }}
    - without: {{ bucket.without | json }}
    - credentials_pillar: bucket:credentials
    - unknown: {{ unknown | json }}
