"""Stage one: the expert runs once per image and its targets go into a Zarr store."""
