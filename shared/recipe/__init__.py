"""The recipe.

Its fields (`fields`), reading it with overrides (`reading`), and its page of the docs (`docs`).
"""

from shared.recipe.fields import DEFAULT_BETA, LoraSection, LossesSection, ModelSection, Recipe
from shared.recipe.reading import load_recipe, make_recipe, recipe_keys, save_recipe

__all__ = [
    "DEFAULT_BETA",
    "LoraSection",
    "LossesSection",
    "ModelSection",
    "Recipe",
    "load_recipe",
    "make_recipe",
    "recipe_keys",
    "save_recipe",
]
