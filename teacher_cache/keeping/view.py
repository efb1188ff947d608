"""One image's target as a picture.

What the teacher attends to, and which patches it finds alike.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import UserError
from shared.imaging import Grid, ImageReference, content_key, open_image
from shared.targets import TargetStore
from shared.targets.numbers.triangle import triangle_row
from teacher_cache.stream import reader_of

SIDE = 384  # pixels of a panel
Values = NDArray[np.float32]


def draw_view(
    store: str | Path,
    image: ImageReference,
    patch: tuple[int, int] | None = None,
    *,
    teacher: str | None = None,
    fingerprint: str | None = None,
    grid: Grid | None = None,
) -> tuple[Image.Image, tuple[int, int]]:
    """Draw three panels side by side: the square, E_a over it, and row `patch` of S_e over it.

    Without E_a in the store there are two.

    Parameters
    ----------
    patch
        (row, column), from 0; None takes the patch with the largest attention weight, or the one
        in the middle.
    teacher, fingerprint, grid
        As in `TargetStore.open`.

    Returns
    -------
    tuple
        The picture, and the patch that was taken.

    Raises
    ------
    UserError
        The store lacks the image, or the grid has no such patch.
    """
    opened = TargetStore.open(store, teacher, fingerprint, grid)
    key = content_key(*image)
    if key not in opened:
        raise UserError(
            f"{opened.namespace.name} holds no target of {image}; add it: "
            f"cache build --teacher {opened.identity.teacher} --images {image} --store {store}"
        )
    target, (rows, columns) = opened[key], opened.grid
    if patch is not None:
        chosen = patch
    elif target.attention is not None:
        chosen = divmod(int(target.attention.argmax()), columns)
    else:
        chosen = rows // 2, columns // 2
    if not (0 <= chosen[0] < rows and 0 <= chosen[1] < columns):
        raise UserError(
            f"the grid has rows 0 to {rows - 1} and columns 0 to {columns - 1}, not patch {chosen}"
        )
    reader = reader_of(opened.identity.preprocessing, opened.identity.geometry)
    base = reader.square(open_image(image), SIDE)
    similar = triangle_row(target.similarity, chosen[0] * columns + chosen[1]).astype(np.float32)
    maps = [np.clip(similar, 0, 1)]
    if target.attention is not None:
        maps.insert(0, target.attention / target.attention.max(initial=1e-30))
    panels = [base, *(heat(base, values.reshape(rows, columns)) for values in maps)]
    picture = Image.new("RGB", (SIDE * len(panels), SIDE))
    for number, panel in enumerate(panels):
        picture.paste(panel, (SIDE * number, 0))
    return picture, chosen


def heat(base: Image.Image, values: Values) -> Image.Image:
    """Lay `values` (rows, columns) in [0, 1] over the image, patch by patch.

    From none of the red to all of it.
    """
    weight = np.asarray(
        Image.fromarray(values.astype(np.float32)).resize(base.size, Image.Resampling.NEAREST)
    )
    gray = np.asarray(base.convert("L"), dtype=np.float32)[..., None] * 0.6
    heat = np.stack([255 * weight, 160 * weight**3, np.zeros_like(weight)], -1)
    return Image.fromarray(np.clip(gray + 0.75 * heat, 0, 255).astype(np.uint8))
