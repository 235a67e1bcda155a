"""Over the air: a signed repository of packs that any static host can serve, and the device that installs from it. No torch."""
