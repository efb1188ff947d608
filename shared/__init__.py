"""What both stages agree on: grids, geometry, image reading, content keys, the target store, recipes."""
