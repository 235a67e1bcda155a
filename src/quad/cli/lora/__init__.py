"""LoRA files on the command line: their headers, and what a base gets of them."""
