"""Regions as masks: PNG files beside the images, and SLAKE's release."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.regions.masks import Mask
from pipelines.regions.patches import inside, mirrored, patch_shares
from pipelines.regions.reading import Region, read_regions, reference_to, regions_of
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.squares import square
from shared.vocabulary import Geometry

pytestmark = pytest.mark.unit


def write_mask(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


@given(
    width=st.integers(8, 40),
    height=st.integers(8, 40),
    corner=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)),
    side=st.sampled_from([2, 3, 5]),
    geometry=st.sampled_from(["pad", "crop"]),
    flipped=st.booleans(),
)
def test_a_mask_of_a_box_is_the_box(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    corner: tuple[float, float],
    side: int,
    geometry: Geometry,
    flipped: bool,
) -> None:
    x, y = int(corner[0] * width), int(corner[1] * height)
    box = (float(x), float(y), float(width - x) // 2 + 1, float(height - y) // 2 + 1)
    pixels = np.zeros((height, width))
    pixels[y : y + int(box[3]), x : x + int(box[2])] = 7
    mask = Mask(write_mask(tmp_path_factory.mktemp("masks") / "a.png", pixels), 7)
    places: tuple[object, ...] = (box, mask)
    if flipped:
        places = tuple(mirrored(place, width) for place in places)  # type: ignore[arg-type]
    shares = [patch_shares([one], width, height, Grid(side, side), geometry) for one in places]  # type: ignore[list-item]
    # A box's shares are stored in 255 steps, where a sliver counts as one of them.
    assert np.abs(shares[0] - shares[1]).max() <= 1 / 255 + 1e-9
    centres = [inside([one], width, height, Grid(side, side), geometry) for one in places]  # type: ignore[list-item]
    length = min(width, height) if geometry == "crop" else max(width, height)
    halves = (np.arange(side) + 0.5) / side * length * 2  # every edge lies on a whole one
    if not np.isclose(halves, halves.round()).any():  # a centre on an edge falls on either side
        assert centres[0].tolist() == centres[1].tolist()


@pytest.mark.parametrize("geometry", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (42, 24)])
def test_shares_are_what_the_encoder_s_square_shows(
    tmp_path: Path, shape: tuple[int, int], geometry: Geometry
) -> None:
    """The mask through the images' own code, as a picture that is not resampled."""
    pixels = np.random.default_rng(0).random(shape) < 0.4
    mask = Mask(write_mask(tmp_path / "a.png", pixels))
    (height, width), side = shape, 6 * (max(shape) if geometry == "pad" else min(shape))
    picture = Image.fromarray(pixels.astype(np.uint8) * 255).convert("RGB")
    picture = picture.resize((width * 6, height * 6), Image.Resampling.NEAREST)
    shown = np.asarray(square(picture, side, geometry, (0, 0, 0)))[..., 0] / 255
    expected = shown.reshape(6, side // 6, 6, side // 6).mean(axis=(1, 3)).ravel()
    found = patch_shares([mask], width, height, Grid(6, 6), geometry)
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_folder_of_masks_names_the_images_without_their_endings(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "a" / "17.png", np.eye(6))
    known = read_regions(tmp_path / "masks")
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("L", (6, 6), 9).save(tmp_path / "images" / "a" / "17.jpg")
    found = regions_of(known, "a/17.jpg")
    assert found is not None
    assert found.regions == (Region("region", Mask(tmp_path / "masks" / "a" / "17.png")),)
    assert regions_of(known, "a/18.jpg") is None
    assert reference_to("a/17", tmp_path / "images").path.name == "17.jpg"
    with pytest.raises(UserError, match="--image-root"):
        reference_to("a/18", tmp_path / "images")


def test_slake_s_release_gives_boxes_and_the_organs_of_its_masks(tmp_path: Path) -> None:
    folder = tmp_path / "imgs" / "xmlab1"
    pixels = np.zeros((8, 8))
    pixels[2:4, 2:4] = 250
    write_mask(folder / "mask.png", pixels)
    Image.new("L", (8, 8), 9).save(folder / "source.jpg")
    boxes = [{"Liver": [2, 2, 2, 2]}, {"Spleen": [5, 5, 2, 2]}]
    (folder / "detection.json").write_text(json.dumps(boxes))
    plain = regions_of(read_regions(tmp_path / "imgs"), "xmlab1/source.jpg")
    assert plain is not None
    assert [one.label for one in plain.regions] == ["Liver", "Spleen"]
    assert list(plain.regions[0].place) == [2, 2, 2, 2]
    (tmp_path / "mask.txt").write_text("Liver:250\nKidney:130\n")
    found = regions_of(read_regions(tmp_path / "imgs"), "xmlab1/source.jpg")
    assert found is not None
    assert [one.label for one in found.regions] == ["Liver", "Spleen"]
    assert found.regions[0].place == Mask(folder / "mask.png", 250)
    (tmp_path / "mask.txt").write_text("Liver 250\n")
    with pytest.raises(UserError, match=r"mask\.txt, line 1"):
        read_regions(tmp_path / "imgs")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[", "is no JSON"),
        ('{"Liver": [2, 2, 2, 2]}', r"expected a list of \{label: \[x, y, width, height\]\}"),
        ("[[2, 2, 2, 2]]", r"expected a list of \{label: \[x, y, width, height\]\}"),
        ('[{"Liver": [2, 2, 2]}]', r"\[2, 2, 2\] is no box"),
        ('[{"Liver": [2, 2, 0, 2]}]', "is no box .* inside an image"),
        ('[{"Liver": [2, 2, 2, 0]}]', "is no box .* inside an image"),
        ('[{"Liver": [-1, 2, 2, 2]}]', "is no box .* inside an image"),
        ('[{"Liver": [2, 2, 2, 1e7]}]', "is no box .* inside an image"),
    ],
)
def test_slake_s_boxes_are_told_by_file_where_they_are_none(
    tmp_path: Path, content: str, fault: str
) -> None:
    (tmp_path / "xmlab1").mkdir()
    (tmp_path / "xmlab1" / "detection.json").write_text(content)
    with pytest.raises(UserError, match=rf"detection\.json.*{fault}"):
        read_regions(tmp_path)


def test_masks_in_our_form_lie_beside_the_file(tmp_path: Path) -> None:
    write_mask(tmp_path / "m" / "a.png", np.eye(6))
    row = {"image": "a.jpg", "masks": ["m/a.png"], "label": "spot", "patient": "p"}
    more = row | {"value": 7, "label": "dot", "view": "axial"}
    (tmp_path / "regions.json").write_text(json.dumps({"records": [row, more]}))
    [found] = read_regions(tmp_path / "regions.json").values()
    file = tmp_path / "m" / "a.png"
    assert found.regions == (Region("spot", Mask(file)), Region("dot", Mask(file, 7)))
    assert (found.patient, found.view) == ("p", "axial")
    (tmp_path / "regions.json").write_text(json.dumps({"records": [row | {"value": "x"}]}))
    with pytest.raises(UserError, match="`value` is 'x'"):
        read_regions(tmp_path / "regions.json")


def test_a_mask_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    file = write_mask(tmp_path / "a.png", np.eye(6))
    with pytest.raises(UserError, match="6 x 6 pixels, its image 5 x 6"):
        patch_shares([Mask(file)], 5, 6, Grid(2, 2), "pad")
    file.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        patch_shares([Mask(file)], 6, 6, Grid(2, 2), "pad")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither PNG masks"):
        read_regions(tmp_path / "empty")
