"""Torch begins here: open a diffusers model, read LoRA files of every dialect, make the LoRA-as-input network."""
