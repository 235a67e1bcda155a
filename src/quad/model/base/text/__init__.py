"""The text side of a model: its tokenizer, and the changes that its text encoder and its readers get before they are frozen."""
