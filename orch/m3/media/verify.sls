# Two users meet through the public name; the media store is where it should be.
m3-media-verified:
  milestone.verified:
    - name: m3.media
