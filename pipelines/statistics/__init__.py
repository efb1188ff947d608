"""Intervals that cover, paired tests that agree with them, and how much a test set can show."""

from pipelines.statistics.intervals import Interval, score_interval
from pipelines.statistics.paired import PairedTest, holm, paired_test

__all__ = ["Interval", "PairedTest", "holm", "paired_test", "score_interval"]
