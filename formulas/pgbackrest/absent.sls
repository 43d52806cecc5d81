# No more backups from here, and the keys are gone. What is in the store stays. PostgreSQL must not
# archive by pgBackRest any more before this.
{%- from 'pgbackrest/map.jinja' import config_file, authority_file, program_dir, settings_file, unit with context %}

pgbackrest-absent-units:
  unit_set.only:
    - name: {{ unit }}
    - units: []

pgbackrest-absent-files:
  file.absent:
    - names:
        - {{ config_file }}
        - {{ authority_file }}
        - {{ program_dir }}
        - {{ settings_file }}
    - require:
        - unit_set: pgbackrest-absent-units
