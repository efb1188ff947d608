"""`cache audit`: its rows follow from the stored targets, the regions, and features made again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.regions.audit import audit
from pipelines.regions.cache import app
from pipelines.regions.experts import CHANCE, FEATURES, OWN, PRIOR, READ, SIMILARITY, together
from pipelines.regions.readout import FOLDS, RIDGE, read_out
from pipelines.regions.table import audit_lines
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from tests.fixtures.tiny_teacher import TEACHER, arguments, tiny_weights

IMAGES = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a smooth square in it, a patient each; the targets of two teachers."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        x, y = (int(one) for one in random.integers(0, 56, 2))
        pixels = random.integers(0, 255, (80, 80), dtype=np.uint8)
        pixels[y : y + 24, x : x + 24] = 200
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append({"image": f"images/{number}.png", "boxes": [[x, y, 24, 24]]})
    rows.append({"image": "images/0.png", "boxes": []})
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    for seed in range(2):
        weights = tiny_weights(folder / f"{seed}.safetensors", seed)
        made = CliRunner().invoke(app, arguments(folder / "images", folder / "store", weights))
        assert made.exit_code == 0, made.output
        if seed == 0:
            made = CliRunner().invoke(app, arguments(folder / "images", folder / "one", weights))
            assert made.exit_code == 0, made.output
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Any:
    weights = str(place / "0.safetensors")
    return audit(place / "one", place / "regions.json", weights=weights, device="cpu")


@pytest.mark.integration
def test_the_rows_are_those_of_the_stored_targets(place: Path, found: Any) -> None:
    """Pointing of E_a and chance, counted from the store and the boxes by hand."""
    [audited] = found["teachers"].values()
    store = TargetStore.open(place / "one")
    hits, shares = [], []
    centres = (np.arange(5) + 0.5) * 16
    for row in json.loads((place / "regions.json").read_text())["records"][:IMAGES]:
        [(x, y, width, height)] = row["boxes"]
        across = (centres >= x) & (centres < x + width)
        down = (centres >= y) & (centres < y + height)
        region = np.outer(down, across).ravel()
        hits.append(region[store[content_key(place / row["image"])].attention.argmax()])
        shares.append(region.mean())
    rows = audited["rows"]
    assert rows[OWN]["pointing"]["value"] == pytest.approx(np.mean(hits))
    assert rows[CHANCE]["pointing"]["value"] == pytest.approx(np.mean(shares))
    assert {OWN, PRIOR, CHANCE, SIMILARITY, READ, FEATURES} <= set(rows)
    assert (found["images"], found["patients"], found["without_target"]) == (IMAGES, IMAGES, 0)
    pairs = {(one["a"], one["b"]) for one in audited["tests"]}
    assert {(OWN, PRIOR), (READ, PRIOR), (FEATURES, CHANCE)} <= pairs
    assert max(map(len, audit_lines(found))) <= 80


@pytest.mark.integration
def test_smooth_squares_are_found_in_features_and_not_by_the_prior(found: Any) -> None:
    [audited] = found["teachers"].values()
    rows = audited["rows"]
    assert rows[READ]["auc"]["value"] > 0.9 > rows[PRIOR]["auc"]["value"]
    assert rows[SIMILARITY]["together"]["value"] > 0.9
    assert audited["left_out"] == ""


@pytest.mark.integration
def test_without_weights_the_reason_is_said_and_wrong_ones_are_an_error(place: Path) -> None:
    both = audit(place / "store", place / "regions.json")
    assert len(both["teachers"]) == 2
    for audited in both["teachers"].values():
        assert READ not in audited["rows"]
        assert audited["left_out"]
        assert OWN in audited["rows"]
    assert {one["score"] for one in both["between"]} >= {"pointing", "together"}
    assert any("without E_v" in line for line in audit_lines(both))
    with pytest.raises(UserError, match="weights is not the teacher of this store: weights"):
        audit(place / "one", place / "regions.json", weights=str(place / "1.safetensors"))
    with pytest.raises(UserError, match="name it with --teacher"):
        audit(place / "store", place / "regions.json", weights=str(place / "1.safetensors"))
    with pytest.raises(UserError, match=f"has no targets of x; it has {TEACHER}"):
        audit(place / "store", place / "regions.json", teacher="x")


@pytest.mark.integration
def test_images_without_targets_are_counted_or_an_error(place: Path, tmp_path: Path) -> None:
    Image.fromarray(np.eye(30, dtype=np.uint8) * 255).save(tmp_path / "new.png")
    row = {"image": str(tmp_path / "new.png"), "boxes": [[1, 1, 9, 9]]}
    (tmp_path / "new.json").write_text(json.dumps({"records": [row]}))
    with pytest.raises(UserError, match="has a target"):
        audit(place / "one", tmp_path / "new.json")
    rows = json.loads((place / "regions.json").read_text())["records"]
    (tmp_path / "both.json").write_text(json.dumps({"records": [*rows, row]}))
    command = ["audit", "--store", place / "one", "--regions", tmp_path / "both.json"]
    command += ["--image-root", place, "--json"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["without_target"] == 1
    said = "1 more have no target in the store and are left out"
    assert said in audit_lines(found)
    found["without_target"] = 0
    assert not any("left out" in line for line in audit_lines(found))


@pytest.mark.integration
def test_keys_in_the_file_do_not_hide_images_that_are_there(place: Path, tmp_path: Path) -> None:
    """E_v of a `matrix` store is encoded again from them; without them the reason is said."""
    rows = json.loads((place / "regions.json").read_text())["records"]
    for row in rows:
        row |= {"key": content_key(place / row["image"]).hex(), "size": [80, 80]}
    (tmp_path / "keys.json").write_text(json.dumps({"records": rows}))
    weights = str(place / "0.safetensors")
    known = audit(
        place / "one", tmp_path / "keys.json", image_root=place, weights=weights, device="cpu"
    )
    plain = audit(place / "one", place / "regions.json", weights=weights, device="cpu")
    assert known["teachers"] == plain["teachers"]
    gone = audit(place / "one", tmp_path / "keys.json", image_root=tmp_path)
    [audited] = gone["teachers"].values()
    assert READ not in audited["rows"]
    assert "nor are the images" in audited["left_out"]
    assert OWN in audited["rows"]


@pytest.mark.unit
def test_the_read_out_is_ridge_regression_without_the_image_s_own_patient() -> None:
    """Against the closed form with an unpenalised intercept, in float64."""
    random = np.random.default_rng(0)
    patients = [str(number // 2) for number in range(2 * 2 * FOLDS)]
    features = [random.normal(size=(6, 3)) * (1, 5, 0.2) + 4 for _ in patients]
    shares = [random.random(6) for _ in patients]
    visible = [random.random(6) < 0.8 for _ in patients]
    maps = read_out(features, shares, visible, patients)
    assert maps is not None
    order = np.random.default_rng(0).permutation(2 * FOLDS)
    fold = {sorted(set(patients))[place]: n % FOLDS for n, place in enumerate(order)}
    for row in (0, 7, 12):
        others = [i for i, one in enumerate(patients) if fold[one] != fold[patients[row]]]
        assert patients[row] not in {patients[i] for i in others}
        x = np.concatenate([features[i][visible[i]] for i in others])
        y = np.concatenate([shares[i][visible[i]] for i in others])
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        z = (x - mean) / deviation
        weights = np.linalg.solve(z.T @ z + RIDGE * len(z) * np.eye(3), z.T @ (y - y.mean()))
        expected = y.mean() + (features[row] - mean) / deviation @ weights
        assert maps[row] == pytest.approx(np.maximum(expected, 0), abs=1e-9)
    assert read_out(features[:2], shares[:2], visible[:2], patients[:2]) is None


@pytest.mark.unit
def test_together_is_scikit_learn_s_auc_over_each_patch_of_the_region() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    rows = random.normal(size=(9, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = rows @ rows.T
    centres, visible = np.arange(9) < 4, np.arange(9) != 3
    kept = [i for i in range(9) if visible[i]]
    expected = []
    for i in range(3):
        rest = [j for j in kept if j != i]
        expected.append(roc_auc_score([centres[j] for j in rest], [matrix[i, j] for j in rest]))
    found = together(matrix[np.triu_indices(9, 1)], centres, visible)
    assert found["together"] == pytest.approx(np.mean(expected))
    assert together(matrix[np.triu_indices(9, 1)], np.arange(9) < 1, visible) == {}


@pytest.mark.unit
def test_the_script_cache_has_every_command_of_the_stage_and_audit() -> None:
    import tomllib
    from importlib import import_module

    from teacher_cache.cli import app as stage

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["cache"].partition(":")
    assert getattr(import_module(module), function).__module__ == "pipelines.regions.cache"
    own, stages = ([one.name for one in each.registered_commands] for each in (app, stage))
    assert own == [*stages, "audit"]


@pytest.mark.integration
def test_labels_are_audited_apart(place: Path, tmp_path: Path) -> None:
    """Two labels at other places: each has its own prior and its own read-out."""
    rows = json.loads((place / "regions.json").read_text())["records"][:IMAGES]
    other = [{**row, "label": "corner", "boxes": [[0, 0, 20, 20]]} for row in rows]
    named = [{**row, "label": "square"} for row in rows]
    (tmp_path / "two.json").write_text(json.dumps({"records": [*named, *other]}))
    weights = str(place / "0.safetensors")
    both = audit(place / "one", tmp_path / "two.json", image_root=place, weights=weights)
    [audited] = both["teachers"].values()
    assert (both["images"], audited["rows"][OWN]["auc"]["n"]) == (IMAGES, 2 * IMAGES)
    (tmp_path / "corner.json").write_text(json.dumps({"records": other}))
    alone = audit(place / "one", tmp_path / "corner.json", image_root=place)
    [corner] = alone["teachers"].values()
    (tmp_path / "square.json").write_text(json.dumps({"records": named}))
    [square] = audit(place / "one", tmp_path / "square.json", image_root=place)["teachers"].values()
    for row in (OWN, PRIOR, CHANCE):
        halves = [one["rows"][row]["energy"]["value"] for one in (corner, square)]
        assert audited["rows"][row]["energy"]["value"] == pytest.approx(np.mean(halves))
    assert corner["rows"][PRIOR]["pointing"]["value"] == 1.0
    assert audited["rows"][FEATURES]["separable"]["n"] == IMAGES
