"""Statistics and probes: what the float network computes on real work."""
