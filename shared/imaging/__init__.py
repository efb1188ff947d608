"""Images as every stage sees them: opened once, squared one way, named by their content."""

from shared.imaging.geometry import Box, content_box, coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.imaging.images import ImageReference, open_image, parse_reference
from shared.imaging.keys import content_key
from shared.imaging.pixels import UnreadableImage

__all__ = [
    "Box",
    "Grid",
    "ImageReference",
    "UnreadableImage",
    "content_box",
    "content_key",
    "coverage",
    "interpolation_matrix",
    "open_image",
    "parse_reference",
]
