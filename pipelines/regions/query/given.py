"""Maps of any origin for questions: gaze, clicks, another model's; each a grey picture.

A file of them is JSON, `{"maps": [{"image": ..., "question": ..., "map": ...}]}`: `image` as the
data set file writes it, `map` a picture of the image's size, relative to the file, whose values are
weights. Without `question` the map is for every question of its image.

N patches of the grid.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.regions.masks import values_of
from pipelines.regions.patches import weights_on
from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.grid import Grid
from shared.imaging.images import open_image, parse_reference
from shared.targets.maps import normalised
from shared.vocabulary import Geometry


class _Given(BaseModel):
    """One map: for a question of an image, or for all of its questions."""

    model_config = ConfigDict(extra="forbid")

    image: str
    map: str
    question: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    maps: list[_Given]


class Given:
    """The maps of a file, by image and question.

    Raises
    ------
    UserError
        It cannot be read, is no such file, or gives two maps for one question.
    """

    def __init__(self, file: Path) -> None:
        with refused_as(f"cannot read {file}"):
            text = file.read_text("utf-8")
        try:
            rows = _File.model_validate(json.loads(text)).maps
        except (ValueError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise UserError(
                f'{file} holds no maps ({reason}): {{"maps": [{{"image": "a.png", "question": '
                '"...", "map": "a-gaze.png"}]}'
            ) from None
        self.files: dict[tuple[str, str | None], Path] = {}
        for row in rows:
            asked = None if row.question is None else normalised(row.question)
            if (row.image, asked) in self.files:
                raise UserError(f"{file} gives two maps for {row.image}, {row.question!r}")
            self.files[row.image, asked] = file.parent / row.map

    def of(
        self, image: str, text: str, root: Path, grid: Grid, geometry: Geometry
    ) -> Float[np.ndarray, " N"] | None:
        """Return the map of a question on the patches; None where the file has none.

        Raises
        ------
        UserError
            The picture cannot be read, or is not of the image's size.
        """
        file = self.files.get((image, normalised(text)), self.files.get((image, None)))
        if file is None:
            return None
        values = values_of(file)
        reference = parse_reference(image, root)
        with refused_as(f"cannot read {reference}"):
            width, height = open_image(reference).size
        if values.shape != (height, width):
            raise UserError(
                f"{file} is {values.shape[1]} x {values.shape[0]} pixels, its image {width} x "
                f"{height}: a map must have its image's size"
            )
        found: NDArray[np.float64] = weights_on(values.astype(np.float64), grid, geometry)
        return found

    def unknown(self, images: Mapping[str, object]) -> list[str]:
        """Name the images of the file that a data set does not show."""
        return sorted({image for image, _ in self.files if image not in images})
