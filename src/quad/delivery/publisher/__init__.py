"""The publisher's side of delivery: keys, signed metadata, the repository's directory."""
