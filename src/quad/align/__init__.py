"""`quad adapt`: a later LoRA admitted to a frozen bundle, and where the base model is at hand trained and measured with it."""
