"""Pages for people: a run's report, and the paper's tables beside one's own."""
