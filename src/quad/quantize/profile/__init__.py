"""The shared profile: pooling, sensitivity, anchor."""
