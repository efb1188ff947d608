"""The map of a question's words, where a run's store of maps, or its store of targets, has one.

N patches of the student's grid.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.query.stored import Stored
from shared.console import warn
from shared.errors import UserError
from shared.recipe import Recipe
from shared.targets import TargetStore
from shared.targets.maps import maps_of

WORDS = "question's words"


def word_maps(
    recipe: Recipe, store: TargetStore, asked: Sequence[tuple[bytes, str]]
) -> list[NDArray[np.float64] | None]:
    """Return the map (N,) of each image and question, not negative; None where there is none.

    The maps that the run was taught come first (`targets.maps`); else a store that was built with
    `--query` is asked, as far as it keeps the questions' embeddings.
    """
    try:
        if recipe.targets.maps is not None:
            opened = TargetStore.open(str(recipe.targets.maps), grid=store.grid, maps=True)
            found = [maps_of(opened, key, [text])[0] for key, text in asked]
        elif store.identity.query is not None:
            own = Stored(store)
            found = [own.maps([key], [text])[0, 0] for key, text in asked]
        else:
            found = [None for _ in asked]
    except UserError as error:
        warn(f"the page shows no map of a question's words: {error}")
        found = [None for _ in asked]
    return [
        None if one is None or not one.sum() > 0 else np.asarray(one, np.float64) for one in found
    ]
