include:
  - directory.copied
