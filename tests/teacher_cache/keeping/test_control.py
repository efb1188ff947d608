"""Controls of a store: whose targets an image gets, and that no run takes one for the teacher's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from shared.records import Record, Turn, write_records
from shared.targets import TargetStore
from teacher_cache.keeping.control import make_control, shuffled
from tests.fixtures.present import present
from tests.fixtures.student_runs import write_images, write_store
from tests.fixtures.targets import key, write_factors
from tests.fixtures.targets import write_records as write_targets

pytestmark = pytest.mark.unit


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 5))
def test_no_image_meets_its_own_patient_and_each_is_used_once(owners: list[int], seed: int) -> None:
    patients = {key(number): str(owner) for number, owner in enumerate(owners)}
    largest = max(owners.count(owner) for owner in owners)
    if 2 * largest > len(owners):
        with pytest.raises(UserError, match="one patient has"):
            shuffled(list(patients), patients, seed)
        return
    found = shuffled(list(patients), patients, seed)
    assert sorted(found) == sorted(found.values()) == sorted(patients)
    assert all(patients[one] != patients[other] for one, other in found.items())


def test_shuffled_targets_are_another_image_s(tmp_path: Path) -> None:
    write_targets(tmp_path / "store", range(9))
    made = make_control(tmp_path / "store", tmp_path / "control", "shuffled", seed=3)
    right = TargetStore.open(tmp_path / "store")
    wrong = TargetStore.open(tmp_path / "control")
    assert made.images == len(wrong) == 9
    by_map = {right[name].attention.tobytes(): name for name in right.keys()}  # noqa: SIM118
    sources = {name: by_map[wrong[name].attention.tobytes()] for name in wrong.keys()}  # noqa: SIM118
    assert all(name != source for name, source in sources.items())
    assert len(set(sources.values())) == 9
    for name, source in sources.items():
        assert np.array_equal(wrong[name].similarity, right[source].similarity)
        assert np.array_equal(wrong[name].coverage, right[name].coverage)


def test_the_mean_is_over_the_images_of_the_data(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", 6)
    write_store(tmp_path / "store", tmp_path / "images", names)
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "This."))
    records = [Record(name, (name,), turns) for name in names[:4]]
    write_records(tmp_path / "train.json", records)
    made = make_control(
        tmp_path / "store",
        tmp_path / "mean",
        "mean",
        data=tmp_path / "train.json",
        image_root=tmp_path / "images",
    )
    assert (made.images, made.patients) == (6, 4)
    right, mean = (TargetStore.open(tmp_path / name) for name in ("store", "mean"))
    from shared.imaging.keys import content_key

    keys = [content_key(tmp_path / "images" / name) for name in names]
    used = [right[one] for one in keys[:4]]
    similarity = np.mean([one.similarity.astype(np.float64) for one in used], axis=0)
    weights = [present(one.attention) for one in used]
    attention = np.mean([one / one.sum(dtype=np.float64) for one in weights], 0)
    for one in keys:
        assert np.abs(mean[one].similarity - similarity).max() <= 2.0**-11  # half a float16 step
        assert np.allclose(present(mean[one].attention), attention, rtol=1e-6)


def test_no_run_takes_a_control_for_the_teacher(tmp_path: Path) -> None:
    write_targets(tmp_path / "store", range(4))
    for seed in (0, 1):
        make_control(
            tmp_path / "store", tmp_path / "store", "shuffled", teacher="dinov2-small", seed=seed
        )
    make_control(tmp_path / "store", tmp_path / "store", "mean", teacher="dinov2-small")
    assert len(TargetStore.open(tmp_path / "store", "dinov2-small")) == 4
    assert len(TargetStore.open(tmp_path / "store", "dinov2-small-mean")) == 4
    with pytest.raises(UserError, match="fingerprint"):
        TargetStore.open(tmp_path / "store", "dinov2-small-shuffled")


def test_what_has_no_control_is_one_line(tmp_path: Path) -> None:
    write_factors(tmp_path / "factors", 3)
    with pytest.raises(UserError, match="encoding factors"):
        make_control(tmp_path / "factors", tmp_path / "out", "mean")
    names = write_images(tmp_path / "images", 3)
    write_store(tmp_path / "store", tmp_path / "images", names[:2])
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "This."))
    write_records(tmp_path / "all.json", [Record(name, (name,), turns) for name in names])
    with pytest.raises(UserError, match="has no target in the store"):
        make_control(
            tmp_path / "store",
            tmp_path / "out",
            "shuffled",
            data=tmp_path / "all.json",
            image_root=tmp_path / "images",
        )


def test_patients_that_some_records_alone_name_are_refused(tmp_path: Path) -> None:
    """One record without its patient would make every image a patient of its own."""
    names = write_images(tmp_path / "images", 4)
    write_store(tmp_path / "store", tmp_path / "images", names)
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "This."))
    named = [Record(n, (n,), turns, extra={"patient": f"p{i // 2}"}) for i, n in enumerate(names)]
    whole, holed = tmp_path / "whole.json", tmp_path / "holed.json"
    write_records(whole, named)
    write_records(holed, [Record(names[0], (names[0],), turns), *named[1:]])
    root, store = tmp_path / "images", tmp_path / "store"
    made = make_control(store, tmp_path / "a", "shuffled", data=whole, image_root=root)
    assert made.patients == 2
    with pytest.raises(UserError, match=r"1 of 4 records .* have no `patient`"):
        make_control(store, tmp_path / "b", "shuffled", data=holed, image_root=root)


def test_images_that_the_data_do_not_show_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path / "images", 4)
    write_store(tmp_path / "store", tmp_path / "images", names)
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "This."))
    records = [Record(n, (n,), turns, extra={"patient": n}) for n in names[:3]]
    write_records(tmp_path / "some.json", records)
    make_control(
        tmp_path / "store", tmp_path / "a", "shuffled", data=tmp_path / "some.json",
        image_root=tmp_path / "images",
    )  # fmt: skip
    assert "shows 3 of 4 images" in capsys.readouterr().err
