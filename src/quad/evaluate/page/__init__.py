"""Pages: plots, tables and reports as one HTML file."""
