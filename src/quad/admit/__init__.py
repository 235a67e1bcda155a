"""Later adapters for a frozen bundle: map, check against the profile, align, try, pack or refuse."""
