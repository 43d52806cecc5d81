roles-directory-copied:
  test.nop
