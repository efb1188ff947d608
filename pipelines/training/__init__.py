"""`student train` with what needs a teacher or a metric handed in."""
