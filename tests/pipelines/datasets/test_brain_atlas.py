"""The brain-atlas set.

Answers follow from the masks, yes and no balance, test slices have no twin in training.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.brain_atlas.questions import LEAST_VISIBLE, presence_records
from pipelines.datasets.brain_atlas.volumes import (
    BRAIN,
    GAP,
    PLANES,
    Slice,
    _name,
    assign_splits,
    load_slices,
    resample_nearest,
)
from pipelines.datasets.brain_atlas.writing import RED, prepare_brain_atlas
from shared.errors import UserError
from shared.records import Record, load_records

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas") / "set"
    prepare_brain_atlas(out, presence=4, test_presence=4, seed=3)
    return out


@pytest.fixture(scope="module")
def records(atlas: Path) -> dict[str, list[Record]]:
    return {split: load_records(atlas / f"{split}.json", atlas) for split in ("train", "test")}


@pytest.fixture(scope="module")
def names(atlas: Path) -> dict[str, int]:
    return {
        name: int(number)
        for number, name in json.loads((atlas / "structures.json").read_text()).items()
    }


def mask(atlas: Path, record: Record) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(atlas / "masks" / f"{record.extra['slice']}.png"))


def both(records: dict[str, list[Record]], kind: str) -> list[Record]:
    return [
        record for split in records.values() for record in split if record.extra["kind"] == kind
    ]


def test_presence_answers_agree_with_the_masks(
    atlas: Path, records: dict[str, list[Record]], names: dict[str, int]
) -> None:
    asked = both(records, "presence")
    assert len(asked) > 1000
    for record in asked:
        area = np.count_nonzero(mask(atlas, record) == names[record.extra["structure"]])
        assert record.extra["structure"] in record.question
        assert record.answer == ("Yes" if area else "No")
        assert area == 0 or area >= LEAST_VISIBLE


@pytest.mark.parametrize("split", ["train", "test"])
def test_yes_and_no_balance_for_every_structure_and_plane(
    records: dict[str, list[Record]], split: str
) -> None:
    counts = Counter(
        (record.extra["plane"], record.extra["structure"], record.answer)
        for record in records[split]
        if record.extra["kind"] == "presence"
    )
    for plane, structure, _ in list(counts):
        assert counts[plane, structure, "Yes"] == counts[plane, structure, "No"]
    assert len({structure for _, structure, _ in counts}) > 10
    planes = Counter(
        (r.extra["plane"], r.answer) for r in records[split] if r.extra["kind"] == "plane"
    )
    assert all(abs(planes[plane, "Yes"] - planes[plane, "No"]) <= 1 for plane in PLANES)


def test_every_beginning_of_the_file_is_balanced(records: dict[str, list[Record]]) -> None:
    asked = [
        record.answer == "Yes" for record in records["test"] if record.extra["kind"] == "presence"
    ]
    assert np.abs(np.cumsum(np.where(asked, 1, -1))).max() <= 1


def test_half_of_the_denied_are_near_misses(
    atlas: Path, records: dict[str, list[Record]], names: dict[str, int]
) -> None:
    """A slice without the structure, but among the closest such slices to one that shows it."""
    training = [record for record in records["train"] if record.extra["kind"] == "presence"]
    shown: dict[tuple[str, str], list[int]] = {}
    for path in sorted((atlas / "masks").iterdir()):
        plane, index = path.stem.split("-")
        for number in np.unique(np.asarray(Image.open(path))):
            shown.setdefault((plane, str(number)), []).append(int(index))
    distance = []
    for record in training:
        if record.answer == "No":
            plane, index = record.extra["slice"].split("-")
            indices = shown[plane, str(names[record.extra["structure"]])]
            distance.append(min(abs(int(index) - other) for other in indices))
    assert min(distance) > 0
    assert np.quantile(distance, 0.4) <= 15


def test_boxes_lie_inside_the_named_structure(
    atlas: Path, records: dict[str, list[Record]], names: dict[str, int]
) -> None:
    boxed = both(records, "box")
    assert len(boxed) > 80
    for record in boxed:
        left, top, right, bottom = record.extra["box"]
        assert np.all(mask(atlas, record)[top:bottom, left:right] == names[record.answer])
        marked = np.asarray(Image.open(atlas / record.images[0]))
        plain = np.asarray(Image.open(atlas / record.images[0].replace("-box", "")).convert("RGB"))
        assert np.array_equal(marked[top:bottom, left:right], plain[top:bottom, left:right])
        assert tuple(marked[top - 1, left]) == RED
        assert record.answer_type == "OPEN"
    assert len({record.answer for record in boxed}) > 8


def test_listed_structures_are_the_largest_in_order(
    atlas: Path, records: dict[str, list[Record]], names: dict[str, int]
) -> None:
    for record in both(records, "structures"):
        counts = np.bincount(mask(atlas, record).ravel(), minlength=256)
        listed = [int(counts[names[name]]) for name in record.answer.split(", ")]
        assert listed == sorted(counts[1:].tolist(), reverse=True)[: len(listed)]
        assert len(listed) == 3


def test_no_test_slice_has_a_neighbour_or_a_twin_in_training(
    atlas: Path, records: dict[str, list[Record]]
) -> None:
    slices = {split: {record.extra["slice"] for record in records[split]} for split in records}
    for name in slices["test"]:
        plane, index = name.split("-")
        for offset in range(-GAP, GAP + 1):
            assert f"{plane}-{int(index) + offset:03d}" not in slices["train"]
    digests = {
        split: {
            hashlib.sha256((atlas / r.images[0]).read_bytes()).hexdigest() for r in records[split]
        }
        for split in records
    }
    assert not digests["train"] & digests["test"]
    assert len(digests["train"]) == len(
        {r.images[0] for r in records["train"]}
    )  # the mirrored half is not there
    assert len(slices["test"]) >= 60


def test_conversations_ask_every_training_question_once(
    atlas: Path, records: dict[str, list[Record]]
) -> None:
    joined = load_records(atlas / "conversations.json", atlas)
    asked = [
        (record.images, question.text.removeprefix("<image>\n"), answer.text)
        for record in joined
        for question, answer in zip(record.turns[::2], record.turns[1::2], strict=True)
    ]
    single = [(record.images, record.question, record.answer) for record in records["train"]]
    assert sorted(asked) == sorted(single)
    assert max(len(record.turns) for record in joined) == 16
    assert len(joined) < len(single) / 2


def test_the_mixed_file_adds_a_conversation_in_words_about_each_training_slice(
    atlas: Path, names: dict[str, int]
) -> None:
    """The words name what the mask shows, the answers agree with it, and yes and no balance."""
    mixed = load_records(atlas / "mixed.json", atlas)
    joined = {record.id: record for record in load_records(atlas / "conversations.json", atlas)}
    assert {record.id: record for record in mixed if record.images} == joined
    texts = [record for record in mixed if not record.images]
    assert (
        len({record.extra["slice"] for record in texts})
        == len(texts)
        == len({r.extra["slice"] for r in joined.values()})
    )
    answers: Counter[str] = Counter()
    for record in texts:
        words, _, first = record.turns[0].text.partition("\n")
        plane, _, listed = words.partition(" ")
        areas = np.bincount(mask(atlas, record).ravel(), minlength=len(names) + 1)
        assert plane == record.extra["plane"]
        assert set(listed.split(", ")) == {
            name for name, number in names.items() if areas[number] >= LEAST_VISIBLE
        }
        for question, answer in zip(
            (first, *(t.text for t in record.turns[2::2])), record.turns[1::2], strict=True
        ):
            asked = question.removeprefix("Is the ").removesuffix(" visible in this slice?")
            if asked in names:
                assert answer.text == ("Yes" if areas[names[asked]] else "No")
                answers[answer.text] += 1
            else:
                assert answer.text == ("Yes" if question == f"Is this slice {plane}?" else "No")
    assert answers["Yes"] == answers["No"] > 500


@pytest.mark.unit
def test_a_region_has_the_name_of_its_longest_known_beginning() -> None:
    assert _name("Frontal_Sup_Orb_L") == "frontal lobe"
    assert _name("ParaHippocampal_R") == "temporal lobe"
    assert _name("Hippocampus_R") == "hippocampus"
    assert _name("Vermis_1_2") == "vermis"
    assert _name("Brainstem") is None


def test_the_regions_are_the_structures_that_the_masks_show(
    atlas: Path, names: dict[str, int]
) -> None:
    from pipelines.regions.masks import Mask, pixels_of
    from pipelines.regions.reading import read_regions

    known = read_regions(atlas / "regions.json")
    assert len(known) == len(list((atlas / "masks").iterdir()))
    for image, found in list(known.items())[::40]:
        pixels = np.asarray(Image.open(atlas / "masks" / Path(image).name))
        counts = np.bincount(pixels.ravel(), minlength=max(names.values()) + 1)
        shown = {label for label, number in names.items() if counts[number] >= LEAST_VISIBLE}
        assert {label for label, _ in found.regions} == shown
        for label, place in found.regions:
            assert isinstance(place, Mask)
            height, width = pixels.shape
            assert np.array_equal(pixels_of(place, width, height), pixels == names[label])
        assert found.view is not None
        assert found.patient.startswith(found.view)
    tested = {Path(one.images[0]).stem for one in load_records(atlas / "test.json")}
    slabs = {
        split: {one.patient for image, one in known.items() if (Path(image).stem in tested) is own}
        for split, own in (("test", True), ("train", False))
    }
    assert not slabs["test"] & slabs["train"]


def test_the_same_seed_gives_the_same_files(atlas: Path, tmp_path: Path) -> None:
    prepare_brain_atlas(tmp_path / "again", presence=4, test_presence=4, seed=3)
    prepare_brain_atlas(tmp_path / "other", presence=4, seed=4)
    for path in sorted(path for path in atlas.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / path.relative_to(atlas)).read_bytes() == path.read_bytes(), (
            path
        )
    assert (tmp_path / "other" / "train.json").read_bytes() != (atlas / "train.json").read_bytes()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        prepare_brain_atlas(tmp_path)


@pytest.mark.unit
@pytest.mark.parametrize(("shown", "hard"), [((50,), 1), ((50, 52), 1), ((50, 52, 54), 2)])
def test_half_of_the_denied_rounded_up_come_from_the_nearest_slices(
    shown: tuple[int, ...], hard: int
) -> None:
    def piece(position: int, number: int) -> Slice:
        regions = np.full((20, 20), number, dtype=np.uint8)
        return Slice("axial", position, "train", np.zeros((20, 20), np.uint8), regions)

    slices = [*(piece(one, 1) for one in shown), *(piece(one, 2) for one in range(0, 45, 5))]
    nearest = {f"axial-{40 - 5 * one:03d}" for one in range(hard)}
    for seed in range(8):
        asked = presence_records(
            slices, {1: "thalamus"}, 2 * len(shown), np.random.default_rng(seed)
        )
        denied = {record.extra["slice"] for record in asked if record.answer == "No"}
        assert nearest <= denied
        assert len(denied) == len(shown)


@pytest.mark.unit
def test_slabs_leave_a_gap() -> None:
    splits = assign_splits(list(range(7, 107)))
    test = [index for index, split in splits.items() if split == "test"]
    train = [index for index, split in splits.items() if split == "train"]
    assert test == [*range(27, 37), *range(77, 87)]
    assert set(range(7, 107)) - set(splits) == {25, 26, 37, 38, 75, 76, 87, 88}
    assert min(abs(a - b) for a in test for b in train) == GAP + 1


@pytest.mark.unit
def test_resampling_goes_through_world_coordinates() -> None:
    """A region at a known place in millimetres is found at that place on the other grid."""
    volume = np.zeros((10, 10, 10), dtype=np.uint8)
    volume[3, 4, 5] = 7
    affine, target = np.diag([2.0, 2.0, 2.0, 1.0]), np.eye(4)
    affine[:3, 3] = (-10, 0, 5)
    target[:3, 3] = (-9, 0, 0)
    result = resample_nearest(volume, affine, (20, 20, 20), target)
    world = affine[:3, :3] @ (3, 4, 5) + affine[:3, 3]
    place = np.argwhere(result == 7) + target[:3, 3]
    assert np.abs(place - world).max() <= 1.0
    assert len(place) >= 1


def test_the_atlas_fits_the_template() -> None:
    """Named structures lie on brain, more so than when shifted by a centimetre.

    The two affines were applied.
    """
    slices, _ = load_slices()

    def on_brain(shift: int) -> float:
        return float(
            np.mean(
                np.concatenate([np.roll(p.image, shift, (0, 1))[p.regions > 0] for p in slices])
                > BRAIN
            )
        )

    for plane in PLANES:  # the volume is cut to the brain, which touches every side of it
        seen = np.any([p.image > BRAIN for p in slices if p.plane == plane], axis=0)
        assert all(side.any() for side in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))
    assert on_brain(0) > 0.94
    assert max(on_brain(10), on_brain(-10)) < on_brain(0) - 0.04
