"""Several weighted training files: what an epoch takes of each, and a run over them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shared.errors import UserError
from student_train.adapter.provenance import file_digest, read_provenance
from student_train.data.files import Share, load_set, training_files
from student_train.data.order import EpochOrder
from student_train.run.dry_run import dry_run
from student_train.run.train import train
from tests.fixtures.student_runs import (
    changed,
    recipe,
    write_images,
    write_run,
    write_store,
    write_train_file,
)


@pytest.mark.unit
@pytest.mark.parametrize("multiple", [1, 4])
def test_an_epoch_takes_each_file_by_its_weight(multiple: int) -> None:
    shares = [Share(6, 15), Share(10, 5), Share(3, 3)]  # weights 2.5, 0.5 and 1
    order = EpochOrder(np.ones(19, dtype=np.int64), 7, 4, multiple, shares=shares)
    epochs = []
    for epoch in range(3):
        order.set_epoch(epoch)
        taken = [index for index in order if index >= 0]
        assert len(taken) == 23
        assert len(list(order)) == len(order) == -(-23 // multiple) * multiple
        counts = Counter(taken)
        assert sorted(counts[i] for i in range(6)) == [2, 2, 2, 3, 3, 3]
        assert sorted(counts[i] for i in range(6, 16)) == [0] * 5 + [1] * 5
        assert [counts[i] for i in range(16, 19)] == [1, 1, 1]
        epochs.append(taken)
        order.set_epoch(epoch)
        assert [index for index in order if index >= 0] == taken  # resuming finds the same order
    drawn = [{index for index in taken if 6 <= index < 16} for taken in epochs]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]  # the half is drawn anew


@pytest.mark.unit
def test_weights_and_folders_go_with_files(tmp_path: Path) -> None:
    values = {"data": {"train": ["a.json", "b.json"]}}
    for key, given in (("weights", [1.0]), ("image_root", ["x", "y", "z"])):
        with pytest.raises(UserError, match=rf"data\.{key} lists {len(given)} for 2 training"):
            recipe(values, **{f"data__{key}": given})
    with pytest.raises(UserError, match="given twice"):
        recipe(values, data__train=["a.json", "a.json"])
    with pytest.raises(UserError, match="greater than 0"):
        recipe(values, data__weights=[1.0, 0.0])
    files = training_files(recipe(values, data__weights=[1.0, 2.5]))
    assert [(file.path, str(file.root), file.weight) for file in files] == [
        ("a.json", ".", 1.0),
        ("b.json", ".", 2.5),
    ]
    names = write_images(tmp_path / "images", 1)
    write_train_file(tmp_path / "few.json", names, 2)
    few = recipe({"data": {"train": str(tmp_path / "few.json"), "weights": [0.1]}})
    with pytest.raises(UserError, match="less than one an epoch"):
        load_set(training_files(few))


@pytest.mark.integration
def test_a_run_over_two_files_with_images_of_their_own(tmp_path: Path) -> None:
    values = write_run(tmp_path, images=4, records=8)
    others = write_images(tmp_path / "others", 3, seed=1)  # the same names, other pictures
    second = write_train_file(tmp_path / "second.json", others, 6)
    write_store(tmp_path / "store", tmp_path / "others", others)
    mixed = changed(
        values,
        data__train=[values["data"]["train"], str(second)],
        data__image_root=[values["data"]["image_root"], str(tmp_path / "others")],
        data__weights=[0.5, 2.0],
    )
    described = dry_run(recipe(mixed))
    assert described["records"] == 14
    assert described["optimiser steps"] == "4 of 4 samples"  # 4 + 12 samples an epoch
    output = train(recipe(mixed))
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["max_steps"] == 4
    found = read_provenance(output)
    assert found is not None
    assert {name: file["sha256"] for name, file in found["data"].items()} == {
        "train": file_digest(values["data"]["train"]),
        "train 2": file_digest(second),
    }
    assert "- Data: `train.json` x 0.5, `second.json` x 2" in (output / "README.md").read_text()
    again = train(recipe(mixed, output=str(tmp_path / "again"), data__workers=1))
    weights = "adapter_model.safetensors"
    assert (again / weights).read_bytes() == (output / weights).read_bytes()
    missing = changed(mixed, data__image_root=[str(tmp_path / "others")] * 2, output="elsewhere")
    with pytest.raises(UserError, match=r"images are not there: .*image3\.png"):
        train(recipe(missing))
