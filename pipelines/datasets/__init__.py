"""Data sets: one file per set, from a release as its users download it to conversation files."""
