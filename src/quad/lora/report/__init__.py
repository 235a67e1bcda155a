"""What was made of a LoRA file, for people: what was converted, what it lost, what was left out."""
