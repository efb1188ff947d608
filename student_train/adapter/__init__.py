"""The folder that a run leaves: its files, loading it again, export, card."""
