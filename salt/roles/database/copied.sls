roles-database-copied:
  test.nop
