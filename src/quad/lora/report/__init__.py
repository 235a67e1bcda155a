"""The fate of a LoRA file, for people: the kinds that were converted, the error of that, and all that was left out."""
