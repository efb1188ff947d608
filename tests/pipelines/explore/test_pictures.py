"""Pictures: none from outside the root, regions where they are, the image's place in the square."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.explore.pictures import Outside, image_box, inside, opened, outlines, picture
from pipelines.regions.masks import Mask
from pipelines.regions.reading import Region
from shared.imaging.images import parse_reference

pytestmark = pytest.mark.unit


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def write_image(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["../out.png", "sub/../../out.png", "link.png", "folder/out.png", "{root}/../out.png",
     "{outside}", "../images-2/out.png", "../out.png#frame=0"],
)  # fmt: skip
def test_no_way_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "images"
    write_image(root / "sub" / "in.png")
    outside = write_image(tmp_path / "out.png")
    write_image(tmp_path / "images-2" / "out.png")  # its path begins as the root's does
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    reference = parse_reference(name.format(root=root, outside=outside), root)
    assert reference.path.is_file()  # it could be read
    with pytest.raises(Outside, match="leads out of the image root"):
        inside(reference, root)


@pytest.mark.parametrize(
    "name", ["sub/in.png", "sub/../sub/in.png", "link.png", "{root}/sub/in.png"]
)
def test_what_lies_in_the_root_is_shown(tmp_path: Path, name: str) -> None:
    root = tmp_path / "images"
    own = write_image(root / "sub" / "in.png")
    (root / "link.png").symlink_to(own)
    linked = tmp_path / "linked"
    linked.symlink_to(root)  # a root may be a link itself
    for place in (root, linked):
        reference = inside(parse_reference(name.format(root=root), place), place)
        assert np.array_equal(pixels(picture(reference)), np.asarray(Image.open(own)))


def test_large_images_are_shown_smaller(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.png", 4000, 1000)
    assert pixels(picture(parse_reference(str(path)))).shape == (400, 1600, 3)
    assert opened(parse_reference(str(path))).size == (4000, 1000)
    drawn = pixels(outlines([Region("a", (1000.0, 500.0, 1000.0, 250.0))], 4000, 1000))
    assert drawn.shape == (400, 1600, 4)
    rows, columns = np.nonzero((drawn == 255).all(axis=2))  # white and opaque
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 299, 400, 799)
    assert drawn[250, 600, 3] == 0


def test_boxes_and_masks_are_outlined_where_they_are(tmp_path: Path) -> None:
    levels = np.zeros((30, 40), np.uint8)
    levels[10:20, 20:30] = 7
    levels[2:4, 2:4] = 5
    Image.fromarray(levels).save(tmp_path / "mask.png")
    regions = [
        Region("lung", (4.0, 6.0, 12.0, 8.0)),
        Region("heart", Mask(tmp_path / "mask.png", 7)),
    ]
    drawn = pixels(outlines(regions, 40, 30))
    white = (drawn == 255).all(axis=2)
    rows, columns = np.nonzero(white)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 13, 4, 15)
    assert white[6:14, 4:16].sum() == 2 * (8 + 12) - 4  # its edge, one pixel wide
    blue = (drawn[..., :3] == (0x4D, 0xD2, 0xFF)).all(axis=2)
    rows, columns = np.nonzero(blue)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 20, 19, 30)
    assert drawn[12:18, 22:28, 3].max() == 0
    assert drawn[0:6, 0:6, 3].max() <= 255 * white[0:6, 0:6].max() + 255  # the other value


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (7, 8), (20, 20)])
def test_the_image_lies_in_the_padded_square_where_pillow_pads_it(width: int, height: int) -> None:
    side = max(width, height)
    white = Image.new("L", (width, height), 255)
    padded = np.asarray(ImageOps.pad(white, (side, side), centering=(0.499, 0.499)))
    rows, columns = np.nonzero(padded)
    left, top, right, bottom = (edge * side for edge in image_box(width, height, "pad"))
    assert (left, top, right, bottom) == pytest.approx(
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    )


def test_a_cropped_image_reaches_beyond_the_square() -> None:
    assert image_box(40, 20, "crop") == (-0.5, 0.0, 1.5, 1.0)
    assert image_box(20, 40, "crop") == (0.0, -0.5, 1.0, 1.5)
