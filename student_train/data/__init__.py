"""From records, images and the target store to batches."""
