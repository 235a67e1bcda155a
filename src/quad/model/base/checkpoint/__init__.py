"""One-file checkpoints with the original names (A1111, ComfyUI, CompVis, Stability): Stable Diffusion 1.x and 2.x."""
