"""From a torch network and a profile to a graph file: export, passes, placement, bundle."""
