"""The arrays of one image: what a teacher's pass becomes, and a row of what a segment holds."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[
    str, NDArray[Any]
]  # by name, without the leading axis of a segment; `layout.arrays_of` lists them
