"""The arrays of one image: what a teacher's pass becomes, and a row of what a segment holds."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# By name, without the leading axis of a segment; `layout.arrays_of` lists them.
Arrays = Mapping[str, NDArray[np.generic]]
