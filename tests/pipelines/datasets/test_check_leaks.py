"""`data check --against`: an image that two files show is found wherever each keeps it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.check import check

pytestmark = pytest.mark.integration


def write(folder: Path, name: str, seed: int) -> Path:
    """Write a data set of one image in a folder of its own."""
    (folder / "imgs").mkdir(parents=True)
    shown = np.random.default_rng(seed).integers(0, 255, (6, 6), dtype=np.uint8)
    Image.fromarray(shown).save(folder / f"imgs/{name}.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    record = {"id": name, "image": f"imgs/{name}.png", "conversations": turns}
    (folder / "data.json").write_text(json.dumps([record]))
    return folder / "data.json"


def leaks(first: Path, second: Path, root: Path | None = None) -> list[str]:
    return [one for one in check(first, root, against=second)["problems"] if "image" in one]


def test_each_file_has_its_own_folder(tmp_path: Path) -> None:
    """The same bytes under other names; and other bytes under the same name."""
    one, other = write(tmp_path / "A", "a", 7), write(tmp_path / "B", "b", 7)
    assert "1 images are also in" in leaks(one, other)[0]
    same_name = write(tmp_path / "C", "a", 9)
    assert leaks(one, same_name) == []


def test_one_root_serves_both(tmp_path: Path) -> None:
    one = write(tmp_path / "A", "a", 7)
    lists = tmp_path / "lists"
    lists.mkdir()
    shutil.copy(one, lists / "other.json")
    assert "1 images are also in" in leaks(one, lists / "other.json", tmp_path / "A")[0]
    assert "1 images are also in" in leaks(one, lists / "other.json")[0]


def test_images_that_are_not_there_are_told(tmp_path: Path) -> None:
    one, other = write(tmp_path / "A", "a", 7), write(tmp_path / "B", "b", 8)
    shutil.rmtree(tmp_path / "B/imgs")
    [said] = leaks(one, other)
    assert "1 images of" in said
    assert "nobody knows" in said
