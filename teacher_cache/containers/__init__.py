"""Images as they lie in the world: in tars, in parquet files, in buckets."""
