"""The shipped recipes: the paper's runs, one for each model and data set, and the demo's."""
