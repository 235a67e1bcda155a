"""Distillation: an adapter's weights trained against the float network."""
