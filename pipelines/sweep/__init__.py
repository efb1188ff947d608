"""Studies: many runs that differ in what the study asks, and the tests over them."""
