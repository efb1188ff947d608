"""Regions on patches and scores of maps, against brute force and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.regions.grounding import auc, chance, grounding, partners, priors
from pipelines.regions.patches import inside, mirrored, patch_shares
from pipelines.regions.reading import read_regions
from pipelines.regions.separability import Vector, separability
from shared.errors import UserError
from shared.imaging.geometry import content_box, coverage
from shared.imaging.grid import Grid

pytestmark = pytest.mark.unit


@given(
    width=st.integers(20, 60),
    height=st.integers(20, 60),
    box=st.tuples(*[st.floats(0, 0.6)] * 2, *[st.floats(0.05, 0.4)] * 2),
    side=st.sampled_from([2, 3, 4, 5]),
)
def test_shares_are_areas_on_the_padded_square(
    width: int, height: int, box: tuple[float, float, float, float], side: int
) -> None:
    """Counted on a raster forty times as fine as a patch."""
    x, y, across, down = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    found = patch_shares([(x, y, across, down)], width, height, Grid(side, side), "pad")
    fine, square = side * 40, max(width, height)
    places = (np.arange(fine) + 0.5) / fine * square
    left, top = (square - width) // 2, (square - height) // 2
    columns = (places >= left + x) & (places < left + x + across)
    rows = (places >= top + y) & (places < top + y + down)
    raster = np.outer(rows, columns).reshape(side, 40, side, 40).mean(axis=(1, 3)).ravel()
    # A raster row or column may fall on either side of an edge: two of 40 in each direction.
    assert np.abs(found - raster).max() <= 4 / 40 + 1 / 255
    centres = inside([(x, y, across, down)], width, height, Grid(side, side), "pad")
    middle = (np.arange(side) + 0.5) / side * square
    expected = np.outer(
        (middle >= top + y) & (middle < top + y + down),
        (middle >= left + x) & (middle < left + x + across),
    )
    # A centre on an edge falls on either side, as the rounding will have it.
    away = [
        np.minimum(np.abs(middle - begin), np.abs(middle - end)) > 1e-9 * square
        for begin, end in ((top + y, top + y + down), (left + x, left + x + across))
    ]
    clear = np.outer(away[0], away[1])
    assert (centres == expected.ravel())[clear.ravel()].all()


def test_a_box_of_the_whole_image_is_the_image_s_coverage() -> None:
    for width, height in ((40, 40), (30, 60), (61, 20)):
        grid = Grid(4, 4)
        found = patch_shares([(0, 0, width, height)], width, height, grid, "pad")
        shown = coverage(content_box(width, height, "pad"), grid) / 255
        assert found.tolist() == shown.tolist()


def test_a_mirrored_box_mirrored_again_is_itself() -> None:
    assert mirrored((3, 4, 5, 6), 20) == (12, 4, 5, 6)
    assert mirrored(mirrored((3, 4, 5, 6), 20), 20) == (3, 4, 5, 6)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_scikit_learn_s(pairs: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import roc_auc_score

    values = np.array([value for value, _ in pairs], dtype=np.float64)
    positive = np.array([found for _, found in pairs])
    if 0 < positive.sum() < len(positive):
        assert auc(values, positive) == pytest.approx(roc_auc_score(positive, values), abs=1e-12)


def test_scores_of_a_map_by_hand() -> None:
    shares = np.array([1.0, 0.5, 0.0, 0.0])
    centres = np.array([True, False, False, False])
    visible = np.array([True, True, True, False])
    found = grounding(np.array([0.1, 0.3, 0.1, 9.0]), shares, centres, visible)
    assert found == pytest.approx({"pointing": 0.0, "energy": (0.1 + 0.15) / 0.5, "auc": 0.25})
    tied = grounding(np.array([2.0, 2.0, 1.0, 9.0]), shares, centres, visible)
    assert tied["pointing"] == 0.5
    nothing = chance(shares, centres, visible)
    assert nothing == pytest.approx({"pointing": 1 / 3, "energy": 0.5, "auc": 0.5})
    assert "auc" not in chance(shares, np.ones(4, dtype=bool), visible)


def test_the_prior_is_the_mean_region_of_other_patients() -> None:
    shares = {"a1": np.array([1.0, 0]), "a2": np.array([0.0, 1]), "b": np.array([0.5, 0])}
    patients = {"a1": "a", "a2": "a", "b": "b"}
    found = priors(shares, patients)
    assert found["a1"].tolist() == [0.5, 0]
    assert found["b"].tolist() == [0.5, 0.5]
    assert priors({"a1": shares["a1"]}, patients) == {}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 3))
def test_a_partner_is_of_another_patient(owners: list[int], seed: int) -> None:
    patients = {str(number): str(owner) for number, owner in enumerate(owners)}
    found = partners(list(patients), patients, seed)
    assert all(patients[one] != patients[other] for one, other in found.items())
    assert (len(found) == len(patients)) == (len(set(owners)) > 1)


def test_separability_counts_neighbours_of_other_patients_alone() -> None:
    """Each patient's two vectors are nearest to each other, which must not count."""

    def vector(patient: str, label: str, *feature: float) -> Vector:
        return Vector(f"{patient}-{label}", patient, label, np.array(feature))

    apart = [vector(p, label, x, y, 5 * z) for z, p in enumerate("abc")
             for label, x, y in (("in", 1, 0), ("out", 0, 1))]  # fmt: skip
    found = separability(apart)
    assert found.hits == [1.0] * 6
    assert found.chance == [0.5] * 6
    mixed = [one._replace(label="in" if one.patient == "a" else one.label) for one in apart]
    assert separability(mixed).hits[:2] == [1.0, 0.0]


def test_both_forms_of_region_files_say_the_same(tmp_path: Path) -> None:
    ours = {
        "records": [
            {"image": "a.png", "patient": "1", "label": "opacity", "boxes": [[1, 2, 3, 4]]},
            {"image": "b.png", "patient": "2", "boxes": []},
        ]
    }
    coco = {
        "images": [
            {"id": 7, "file_name": "a.png", "patient": "1"},
            {"id": 8, "file_name": "b.png", "patient": "2"},
        ],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 3, "name": "opacity"}],
    }
    for name, document in (("ours", ours), ("coco", coco)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert read_regions(tmp_path / "ours.json") == read_regions(tmp_path / "coco.json")


@pytest.mark.parametrize(
    "document",
    [
        {"boxes": []},
        {"records": [{"image": "a.png"}]},
        {"records": [{"image": "a.png", "boxes": [[1, 2, 3]]}]},
        {"annotations": [{"image_id": 1}], "images": []},
        {"annotations": [{"image_id": 1, "bbox": [1, 2, -3, 4]}], "images": []},
    ],
)
def test_other_files_are_one_line(tmp_path: Path, document: object) -> None:
    (tmp_path / "regions.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"regions\.json"):
        read_regions(tmp_path / "regions.json")
