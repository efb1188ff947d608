"""The teachers by name, one file each, and reading their checkpoints strictly."""
