roles-database-copied-back:
  test.nop
