"""LoRA files that clients send are admitted in a process of their own, which is bounded and ended where it takes too long or too much."""
