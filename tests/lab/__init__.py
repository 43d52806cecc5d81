"""The lab: real machines, a real 2021 homeserver, and the milestones run on them."""
