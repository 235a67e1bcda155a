"""How good it is: metrics, quality against truth, paired quality of a bundle, timings, and the report."""
