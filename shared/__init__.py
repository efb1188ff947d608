"""What both stages agree on.

Grids, geometry, image reading, content keys, the target store, recipes.
"""
