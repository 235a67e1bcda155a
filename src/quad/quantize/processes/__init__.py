"""Work that several processes share (`accelerate launch`): dealt piece by piece, its results everywhere in one order."""
