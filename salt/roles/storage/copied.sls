roles-storage-copied:
  test.nop
