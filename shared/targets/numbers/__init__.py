"""What the stored numbers are: S, its triangle, factors, interpolation (Eq. 2, 3)."""
