"""Q/DQ placement: the profile's encodings become nodes of the graph."""
