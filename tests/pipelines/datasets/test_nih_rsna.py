"""Chest X-rays with boxes.

Answers follow from the boxes, words alone say nothing, no patient is in two parts.
"""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.nih_rsna.questions import ZONES
from pipelines.datasets.nih_rsna.reading import read_xrays
from pipelines.datasets.nih_rsna.writing import ASIDE, FOLDS, RED, prepare_nih_rsna
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.records import Record, load_records

pytestmark = pytest.mark.unit
SIDE = 64
PARTS = (ASIDE, *(f"fold{number}" for number in range(FOLDS)))


def rows(opaque: int = 24, clear: int = 30) -> list[dict[str, Any]]:
    """X-rays of as many patients; every third opaque patient has a second one."""
    generator = np.random.default_rng(0)
    found = []
    for patient in range(opaque + clear):
        count = 2 if patient % 3 == 0 and patient < opaque else 1
        for number in range(count):
            boxes = []
            if patient < opaque:
                for _ in range(1 + patient % 2):
                    corner = generator.integers(0, SIDE - 24, 2)
                    boxes.append([*map(float, corner), *map(float, generator.integers(6, 24, 2))])
            finding = "Lung Opacity" if boxes else ("Normal" if patient % 2 else "Not Normal")
            name = f"images/{patient:08d}_{number:03d}.png"
            found.append(
                {"image": name, "patient": f"{patient:08d}", "rsna_class": finding, "boxes": boxes}
            )
    return found


def write_source(folder: Path, records: list[dict[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(1)
    for record in records:
        picture = generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(picture).save(folder / record["image"])
    (folder / "regions.json").write_text(json.dumps({"records": records}))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "set", rows())


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare_nih_rsna(source, out, seed=5)
    return out


def asked_of(prepared: Path, part: str) -> list[Record]:
    return load_records(prepared / part / "test.json", prepared)


def boxes_of(prepared: Path) -> dict[str, list[list[float]]]:
    document = json.loads((prepared / "regions.json").read_text())
    return {Path(row["image"]).stem: row["boxes"] for row in document["records"]}


def test_no_patient_is_in_two_parts_and_training_is_the_other_folds(prepared: Path) -> None:
    patients = {part: {one.extra["patient"] for one in asked_of(prepared, part)} for part in PARTS}
    for first in PARTS:
        trained = load_records(prepared / first / "train.json", prepared)
        expected = [part for part in PARTS if part not in (first, ASIDE)]
        assert {one.extra["patient"] for one in trained} == set().union(
            *(patients[part] for part in expected)
        )
        assert not patients[first] & {one.extra["patient"] for one in trained}


def test_words_alone_answer_half_of_the_closed_questions(prepared: Path) -> None:
    for part in PARTS:
        answers = Counter(
            (one.question, one.answer)
            for one in asked_of(prepared, part)
            if one.answer_type == "CLOSED"
        )
        for question, _ in answers:
            assert answers[question, "Yes"] == answers[question, "No"]


def test_every_answer_follows_from_the_boxes(prepared: Path) -> None:
    boxes, seen = boxes_of(prepared), Counter[str]()
    for part in PARTS:
        for one in asked_of(prepared, part):
            own, kind = boxes[one.extra["xray"]], one.extra["kind"]
            sides = {"right" if x + width / 2 < SIDE / 2 else "left" for x, _, width, _ in own}
            zones = {
                ("upper", "middle", "lower")[sum((y + height / 2) / SIDE >= edge for edge in ZONES)]
                for _, y, _, height in own
            }
            expected = {
                "any": "Yes" if own else "No",
                "right": "Yes" if "right" in sides else "No",
                "left": "Yes" if "left" in sides else "No",
                "side": "both" if len(sides) == 2 else "".join(sides),
                "zone": "".join(zones),
                "box": "Yes" if "box" in one.extra and overlaps(one.extra["box"], own) else "No",
            }[kind]
            assert one.answer == expected
            seen[kind] += 1
    assert set(seen) == {"any", "right", "left", "side", "zone", "box"}


def overlaps(box: list[float], others: list[list[float]]) -> bool:
    """Whether any pixel is in both, by drawing them."""
    pictures = []
    for group in ([box], others):
        picture = np.zeros((SIDE * 10, SIDE * 10), dtype=bool)
        for x, y, width, height in group:
            left, top, right, bottom = (round(10 * side) for side in (x, y, x + width, y + height))
            picture[top:bottom, left:right] = True
        pictures.append(picture)
    return bool((pictures[0] & pictures[1]).any())


def test_each_box_is_asked_about_once_where_it_is_and_once_where_it_is_not(prepared: Path) -> None:
    for part in PARTS:
        asked = [one for one in asked_of(prepared, part) if one.extra["kind"] == "box"]
        by_box = Counter((tuple(one.extra["box"]), one.answer) for one in asked)
        assert asked
        assert set(by_box.values()) == {1}
        assert {box for box, answer in by_box if answer == "Yes"} == {
            box for box, answer in by_box if answer == "No"
        }


def test_a_marked_copy_is_red_around_the_box_and_untouched_inside(prepared: Path) -> None:
    one = next(one for one in asked_of(prepared, "fold0") if one.extra["kind"] == "box")
    marked = np.asarray(Image.open(prepared / one.images[0]))
    plain = np.asarray(Image.open(prepared / "images" / f"{one.extra['xray']}.png").convert("RGB"))
    red = (marked == RED).all(axis=2)
    changed = (marked != plain).any(axis=2)
    x, y, width, height = (round(side) for side in one.extra["box"])
    assert red.any()
    assert not (changed & ~red).any()
    assert not red[y : y + height, x : x + width].any()


def test_an_x_ray_keeps_its_content_key(source: Path, prepared: Path) -> None:
    for file in sorted((source / "images").iterdir()):
        assert content_key(file) == content_key(prepared / "images" / file.name)


def test_equal_seeds_give_equal_files(source: Path, prepared: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    prepare_nih_rsna(source, again, seed=5)
    for file in sorted(prepared.rglob("*.json")):
        assert file.read_bytes() == (again / file.relative_to(prepared)).read_bytes()
    other = tmp_path / "other"
    prepare_nih_rsna(source, other, seed=6)
    assert (other / "records.json").read_bytes() != (prepared / "records.json").read_bytes()


def test_conversations_hold_the_training_questions(prepared: Path) -> None:
    single = load_records(prepared / "fold1" / "train.json", prepared)
    joined = load_records(prepared / "fold1" / "conversations.json", prepared)
    asked = Counter(
        (one.images[0], one.turns[place].text.replace("<image>\n", ""))
        for one in joined
        for place in range(0, len(one.turns), 2)
    )
    assert asked == Counter((one.images[0], one.question) for one in single)


def test_the_challenge_s_own_files_give_the_same_x_rays(source: Path, tmp_path: Path) -> None:
    """RSNA's tables name images by its own ids, and NIH's names are in its mapping."""
    records = json.loads((source / "regions.json").read_text())["records"]
    (tmp_path / "images").symlink_to(source / "images")
    named = {f"uuid-{number}": record for number, record in enumerate(records)}
    with (tmp_path / "stage_2_train_labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patientId", "x", "y", "width", "height", "Target"])
        for name, record in named.items():
            for box in record["boxes"] or [["", "", "", ""]]:
                table.writerow([name, *box, int(bool(record["boxes"]))])
    with (tmp_path / "stage_2_detailed_class_info.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patientId", "class"])
        for name, record in named.items():
            table.writerows([[name, record["rsna_class"]]] * max(1, len(record["boxes"])))
    mapping = [
        {"subset_img_id": name, "img_id": Path(record["image"]).name}
        for name, record in named.items()
    ]
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    found = [(one.file.name, *one[1:]) for one in read_xrays(tmp_path)]
    assert found == [(one.file.name, *one[1:]) for one in read_xrays(source)]


def test_bad_folders_are_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither regions\.json nor"):
        read_xrays(tmp_path)
    few = write_source(tmp_path / "few", rows(opaque=3, clear=20))
    with pytest.raises(UserError, match="3 patients with an opacity are too few"):
        prepare_nih_rsna(few, tmp_path / "out")
    outside = rows()
    outside[0]["boxes"] = [[50.0, 0.0, 30.0, 5.0]]
    with pytest.raises(UserError, match="ends outside"):
        prepare_nih_rsna(write_source(tmp_path / "outside", outside), tmp_path / "out2")
    missing = write_source(tmp_path / "missing", rows())
    next((missing / "images").iterdir()).unlink()
    with pytest.raises(UserError, match="1 of 62 images are not there"):
        read_xrays(missing)
    (tmp_path / "no-box").mkdir()
    for value in ([1, 2, 3], [0, 0, 0, 5], [0, 0, "a", 5], [float("nan"), 0, 1, 1]):
        wrong = {"image": "a.png", "patient": "1", "rsna_class": "Normal", "boxes": [value]}
        (tmp_path / "no-box" / "regions.json").write_text(json.dumps({"records": [wrong]}))
        with pytest.raises(UserError, match="is no box"):
            read_xrays(tmp_path / "no-box")
