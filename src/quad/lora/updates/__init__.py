"""The update that each kind of adapter adds to a weight, a file a kind; `quad.lora.kinds` is their table."""
