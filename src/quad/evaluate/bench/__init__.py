"""`quad bench`: times, switches, bytes and memory of a bundle on this machine."""
