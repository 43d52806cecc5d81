roles-directory-copied-back:
  test.nop
