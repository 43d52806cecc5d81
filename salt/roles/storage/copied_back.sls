roles-storage-copied-back:
  test.nop
