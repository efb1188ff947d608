"""The local page to look into a run: its items, answers, images, attention and similarity."""
