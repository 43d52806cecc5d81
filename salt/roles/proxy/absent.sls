include:
  - nginx.absent
