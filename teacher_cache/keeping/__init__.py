"""Keeping a store: describe, check, merge, sweep, export, look at it."""
