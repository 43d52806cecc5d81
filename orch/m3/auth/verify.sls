# Two users meet through the public name; the password auth backend is where it should be.
m3-auth-verified:
  milestone.verified:
    - name: m3.auth
