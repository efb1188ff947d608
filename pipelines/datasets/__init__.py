"""Data sets: one file a set, from a release as its users download it to conversation files."""
