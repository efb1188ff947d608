"""A training run: what it checks first, its trainer, what it leaves, how it resumes."""
