"""A page over the API of the same server: static files, their headers, and what the page shows of the bundle."""
