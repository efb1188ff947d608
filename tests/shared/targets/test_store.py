"""The target store's straight path: write, read back, by ourselves and by plain zarr."""

import json
import pickle
import time
import warnings
from datetime import UTC, datetime

import numpy as np
import pytest
import zarr

from shared.errors import UserError
from shared.targets import DamagedSegment, Identity, TargetStore, TargetWriter
from shared.targets.namespace import (
    create_namespace,
    list_namespaces,
    quarantine,
    quarantined,
    segment_id,
)
from shared.targets.segment.checks import keys_present
from shared.targets.segment.chunks import decode_shard_index, shard_index_length
from shared.targets.segment.manifest import read_manifest
from tests.fixtures.targets import identity, key, matrix_record, write_records

PREPROCESSING = identity().document()["preprocessing"]

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def test_records_read_back_singly_and_in_any_order(tmp_path):
    write_records(tmp_path / "store", range(10))
    store = TargetStore.open(tmp_path / "store", teacher="dinov2-small", grid=(3, 4))
    assert len(store) == 10
    assert key(3) in store
    assert key(99) not in store
    assert sorted(store.keys()) == sorted(key(number) for number in range(10))
    assert store.missing([key(99), key(1), key(99)]) == [key(99)]
    for number in range(10):
        target = store[key(number)]
        for name, values in matrix_record(number).items():
            np.testing.assert_array_equal(getattr(target, name), values)
            assert getattr(target, name).dtype == values.dtype
    order = [7, 0, 7, 9, 3, 4]
    batch = store.batch([key(number) for number in order])
    for row, number in enumerate(order):
        for name, values in matrix_record(number).items():
            np.testing.assert_array_equal(getattr(batch, name)[row], values)


@pytest.mark.parametrize("store_format", [1, 2])
def test_plain_zarr_reads_the_same_arrays(tmp_path, store_format):
    namespace = write_records(tmp_path / "store", range(6), format=store_format)
    root = zarr.open_group(tmp_path / "store" / namespace.name, mode="r")
    assert root.attrs["medalign"]["format"] == store_format
    assert root.attrs["medalign"]["identity"] == identity(format=store_format).document()
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification"
        )
        for segment in (tmp_path / "store" / namespace.name / "segments").iterdir():
            if not segment.is_dir():
                continue
            group = root[f"segments/{segment.name}"]
            for row, found_key in enumerate(group["key"][:]):
                found[found_key.tobytes()] = {name: group[name][row] for name in matrix_record(0)}
    assert found.keys() == {key(number) for number in range(6)}
    for number in range(6):
        for name, values in matrix_record(number).items():
            np.testing.assert_array_equal(found[key(number)][name], values)


@pytest.mark.parametrize("store_format", [1, 2])
def test_segments_have_the_published_layout(tmp_path, store_format):
    namespace = write_records(tmp_path / "store", range(4), format=store_format)
    (segment,) = namespace.segments()
    folder = tmp_path / "store" / namespace.name / "segments" / segment
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "manifest.json",
        "zarr.json",
        *(f"{name}/zarr.json" for name in ("key", "similarity", "attention", "coverage")),
        *(f"{name}/c/0/0" for name in ("key", "similarity", "attention", "coverage")),
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert not list((tmp_path / "store").rglob(".tmp-*"))
    group = json.loads((folder / "similarity" / "zarr.json").read_text())
    assert group["shape"] == [4, 66]
    assert group["codecs"][0]["configuration"]["chunk_shape"] == [1, 66]


def test_resume_skips_what_is_there(tmp_path):
    write_records(tmp_path / "store", range(5))
    namespace = write_records(tmp_path / "store", [])
    present, damaged = keys_present(namespace)
    assert present == {key(number) for number in range(5)}
    assert not damaged


@pytest.mark.parametrize("store_format", [1, 2])
def test_the_same_segment_twice_is_one(tmp_path, store_format):
    first = write_records(tmp_path / "store", range(4), format=store_format)
    write_records(tmp_path / "store", range(4), format=store_format)
    assert len(first.segments()) == 1


def test_segments_are_named_in_the_order_of_time(tmp_path, monkeypatch):
    """So that a reader who knows a segment lists only what came after it."""
    before = time.time()
    namespace = write_records(tmp_path / "store", range(4))
    (first,) = namespace.segments()
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 0.002)  # the next but one ms
    write_records(tmp_path / "store", range(4, 8))
    assert namespace.segments()[0] == first
    when, _, digits = first.partition("-")
    assert before - 0.001 <= int(when, 16) / 1000 <= time.time()
    manifest = namespace.storage.read(namespace.path("segments", first, "manifest.json"))
    assert json.loads(manifest)["digest"].startswith(digits)


def test_one_object_opens_a_segment(tmp_path):
    """What the manifest says of keys and chunks is what zarr's own files say."""
    namespace = write_records(tmp_path / "store", range(4))
    (segment,) = namespace.segments()
    folder = tmp_path / "store" / namespace.path("segments", segment)
    opening = read_manifest(namespace, segment).opening
    assert opening is not None
    assert [row.tobytes() for row in opening.keys] == [key(number) for number in range(4)]
    for name in matrix_record(0):
        shard = (folder / name / "c/0/0").read_bytes()
        index = decode_shard_index(shard[-shard_index_length(4) :], 4)
        np.testing.assert_array_equal(index[:, 1], opening.lengths[name])
        np.testing.assert_array_equal(index[1:, 0], np.cumsum(opening.lengths[name])[:-1])
        document = json.loads((folder / name / "zarr.json").read_text())
        assert tuple(document["shape"][1:]) == opening.shapes[name]


def test_duplicates_in_different_segments_count_once(tmp_path):
    namespace = write_records(tmp_path / "store", range(4))
    write_records(tmp_path / "store", range(2, 6))
    assert len(namespace.segments()) == 2
    store = TargetStore.open(tmp_path / "store")
    assert len(store) == 6


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"grid": (24, 24)}, "grid"),
        ({"teacher": "unimed-l"}, "teacher"),
        ({"identity": identity(geometry="crop")}, "geometry"),
        (
            {"identity": identity(preprocessing={**PREPROCESSING, "size": 224})},
            "preprocessing.size",
        ),
    ],
)
def test_a_store_that_does_not_fit_names_fingerprints_and_field(tmp_path, wanted, field):
    write_records(tmp_path / "store", range(2))
    with pytest.raises(UserError) as caught:
        TargetStore.open(tmp_path / "store", **wanted)
    message = str(caught.value)
    assert identity().fingerprint()[:12] in message
    assert f"`{field}`" in message
    expected = wanted.get("identity") or identity(**wanted)
    assert expected.fingerprint()[:12] in message


def test_a_wrong_fingerprint_names_both(tmp_path):
    write_records(tmp_path / "store", range(2))
    with pytest.raises(UserError, match=f"{identity().fingerprint()[:12]}.*wanted 0123456789ab"):
        TargetStore.open(tmp_path / "store", fingerprint="0123456789ab")
    assert len(TargetStore.open(tmp_path / "store", fingerprint=identity().fingerprint()[:12])) == 2


def test_two_namespaces_need_a_choice(tmp_path):
    write_records(tmp_path / "store", range(2))
    write_records(tmp_path / "store", range(2), geometry="crop")
    with pytest.raises(UserError, match="choose one"):
        TargetStore.open(tmp_path / "store")
    assert len(list_namespaces(tmp_path / "store")) == 2


def test_no_store(tmp_path):
    with pytest.raises(UserError, match="cache build"):
        TargetStore.open(tmp_path / "nothing")


def test_missing_keys_are_key_errors(tmp_path):
    write_records(tmp_path / "store", range(2))
    store = TargetStore.open(tmp_path / "store")
    with pytest.raises(KeyError, match="1 of 2"):
        store.batch([key(0), key(77)])


def test_missing_keys_are_counted_and_the_first_is_named(tmp_path):
    write_records(tmp_path / "store", [0])
    with pytest.raises(KeyError, match=f"2 of 3 keys .* the first: {key(98).hex()}"):
        TargetStore.open(tmp_path / "store").arrays([key(0), key(98), key(99)])


def test_two_identities_under_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(Identity, "fingerprint", lambda self: "0" * 64)
    create_namespace(tmp_path / "store", identity())
    assert create_namespace(tmp_path / "store", identity()).identity == identity()
    with pytest.raises(UserError, match="another identity under this name"):
        create_namespace(tmp_path / "store", identity(grid=(4, 4)))


def test_a_pickled_store_opens_again(tmp_path):
    write_records(tmp_path / "store", range(3))
    store = pickle.loads(pickle.dumps(TargetStore.open(tmp_path / "store")))
    np.testing.assert_array_equal(store[key(1)].similarity, matrix_record(1)["similarity"])


def test_an_edited_size_is_noticed_on_first_use(tmp_path):
    namespace = write_records(tmp_path / "store", range(2))
    store = TargetStore.open(tmp_path / "store")
    (segment,) = namespace.segments()
    shard = tmp_path / "store" / namespace.name / "segments" / segment / "similarity/c/0/0"
    shard.write_bytes(b"")
    with pytest.raises(DamagedSegment, match="similarity/c/0/0"):
        store[key(0)]


def test_values_that_are_not_finite_are_refused(tmp_path):
    record = matrix_record(0)
    record["attention"][3] = np.nan
    with (
        TargetWriter(tmp_path / "store", identity()) as writer,
        pytest.raises(ValueError, match="finite"),
    ):
        writer.add(key(0), record)


@pytest.mark.parametrize("wrong", [key(0), key(1)[:31], b""], ids=["again", "short", "none"])
def test_a_key_is_32_bytes_and_added_once(tmp_path, wrong):
    with TargetWriter(tmp_path / "store", identity()) as writer:
        writer.add(key(0), matrix_record(0))
        with pytest.raises(ValueError, match="a key is 32 bytes and added once"):
            writer.add(wrong, matrix_record(1))
    target = TargetStore.open(tmp_path / "store")[key(0)]
    np.testing.assert_array_equal(target.attention, matrix_record(0)["attention"])


def test_quarantine_keeps_the_latest_reason(tmp_path):
    namespace = write_records(tmp_path / "store", range(1))
    quarantine(namespace, key(5), "truncated\n  file")
    (record,) = quarantined(namespace)
    assert record.key == key(5)
    assert record.reason == "truncated file"


def test_a_store_of_the_older_definition_is_another_namespace_and_readable(tmp_path):
    root = tmp_path / "store"
    wrote = {}
    for definition, number in ((1, 3), (2, 4)):
        with TargetWriter(root, identity(definition=definition)) as writer:
            writer.add(key(number), matrix_record(number))
        wrote[definition] = writer.namespace.name
    assert wrote[1] != wrote[2]
    old = TargetStore.open(root, identity=identity(definition=1))
    assert old.identity.definition == 1
    assert key(3) in old
    assert key(4) not in old
    new = TargetStore.open(root, identity=identity())
    assert key(4) in new
    assert key(3) not in new
    assert np.array_equal(
        old.arrays([key(3)])["attention"][0], matrix_record(3)["attention"].astype(np.float32)
    )
    with pytest.raises(UserError, match="holds 2 that fit"):
        TargetStore.open(root)


def test_a_store_of_the_older_definition_alone_is_told_to_be_another(tmp_path):
    with TargetWriter(tmp_path / "store", identity(definition=1)) as writer:
        writer.add(key(3), matrix_record(3))
    with pytest.raises(UserError, match="`definition` is 1, wanted 2"):
        TargetStore.open(tmp_path / "store", identity=identity())


def test_the_fingerprint_is_stable():
    """The golden value names every store there is: a change of it orphans them.

    Both definitions of the targets have one: a store of the first keeps its name.
    """
    first = identity(format=1)
    assert (
        identity(definition=1, format=1).fingerprint()
        == "f65c5ce84bdb87811adc8449d2a2138fd4a4a9bd68f8aa7b1a79fbef5fe8ffc3"
    )
    assert first.fingerprint() == "3e5011f685d4e05b8ef8c2b19c803dd1b721355bcb12e072ccbe668849f02721"
    assert identity().namespace() == f"dinov2-small-{identity().fingerprint()[:12]}"
    assert identity(precision="f16").fingerprint() == identity().fingerprint()
    factors = identity(encoding="factors", tolerance=0.01, format=1)
    old = factors.model_copy(update={"definition": 1})
    assert old.fingerprint() == "0676c2aec8d27ae5e8fdae89c4ca6df4eb2f3ec55bbb87fdc820113410ab22fd"
    assert (
        factors.fingerprint() == "9c3cd8e430e99223de68418548c1ed254666caf6f71546f419a27c479abda767"
    )
    assert factors == identity(encoding="factors", tolerance=0.01, precision="u8", format=1)
    assert (
        identity().fingerprint()
        == "f1a2bf51d946cb882b8144bf2eddc85e4eeae4f8509323cfb39dd5cdde5f05e9"
    )
    patches = identity(encoding="patches", width=384, rotation="hadamard")
    assert (
        patches.fingerprint() == "b9607ad1046cd3e61b548fad68923193c6e2c0de0aba77c44b460d210fd021a8"
    )
    assert (
        identity(teacher="open_clip:ViT-L-14/openai")
        .namespace()
        .startswith("open_clip-ViT-L-14-openai-")
    )


def test_a_segments_id_is_that_of_the_format():
    """The test vector of docs/store-format.md."""
    when = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    digest = "fe2e4ce075285b8a3e92" + "0" * 44
    assert segment_id(2, digest, when) == "019b76daa800-fe2e4ce075285b8a3e92"
    assert segment_id(1, digest, when) == digest[:32]
