"""Images as every stage sees them: opened once, squared one way, named by their content."""
