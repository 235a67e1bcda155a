"""For the runtimes of others: bundles with adapters merged in, and adapters in formats that other programs read. No torch."""
