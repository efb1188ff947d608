"""Questions in words to a store of `patches`: fitted on regions, answered from the store alone."""
