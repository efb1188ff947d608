"""What a segment is: its arrays, bytes, manifest, writing, reading, checking."""
