"""An adapter as a graph takes it: other factors of the same product, padded to the slots, as integers of a frozen profile."""
