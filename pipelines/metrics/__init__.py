"""Scores: one file a family of metrics."""
