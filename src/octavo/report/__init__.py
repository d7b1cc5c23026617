"""Records and results for people to read."""
