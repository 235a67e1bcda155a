"""Files: written whole or not at all, read within bounds, never left by a name."""
