"""Adapters merged into the weights of a bundle's graphs: no slots, no cost at a step."""
