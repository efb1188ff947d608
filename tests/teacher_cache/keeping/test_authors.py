"""The authors' pickles as a store; pickles that would run code, or hold anything but arrays."""

import io
import json
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shared.errors import UserError
from shared.imaging import content_key
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces
from shared.targets.segment.scan import scan
from teacher_cache.cli import app
from teacher_cache.keeping.pickled import load_arrays
from tests.fixtures.images import image_folder

pytestmark = pytest.mark.unit
PATCHES = 16
NAMES = ("xmlab1/source.png", "xmlab2/source.png", "xmlab3/source.png")


def targets(seed):
    """What the authors' notebooks compute: cosines of patches, attention over its maximum."""
    random = np.random.default_rng(seed)
    patches = random.normal(size=(PATCHES, 8)).astype(np.float32)
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    attention = random.random(PATCHES).astype(np.float32)
    return patches @ patches.T, attention / attention.max()


@pytest.fixture
def release(tmp_path):
    """Images and pickles as the authors' notebooks leave them."""
    made = image_folder(tmp_path / "made", 3)
    for name, path in zip(NAMES, made, strict=True):
        place = tmp_path / "imgs" / name
        place.parent.mkdir(parents=True)
        place.write_bytes(path.read_bytes())
    for position, file in enumerate(("cosine_matrix_dict.pkl", "attn_map_dict.pkl")):
        content = {name: targets(seed)[position] for seed, name in enumerate(NAMES)}
        (tmp_path / file).write_bytes(pickle.dumps(content))
    return tmp_path


def line(folder, *more):
    pickles = (folder / "cosine_matrix_dict.pkl", folder / "attn_map_dict.pkl")
    words = ("import", "--authors", *pickles, "--images", folder / "imgs", "--store")
    return [str(one) for one in (*words, folder / "store", "--teacher", "unimed-l", *more)]


def run(words):
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize(("precision", "off"), [("f16", 2.5e-4), ("u8", 0.5 / 127.5 + 2.5e-4)])
def test_the_targets_are_those_of_the_pickles(release, precision, off):
    done = run(line(release, "--precision", precision, "--json"))
    assert done.exit_code == 0, done.output
    store = TargetStore.open(release / "store")
    assert len(store) == 3
    for seed, name in enumerate(NAMES):
        similarity, attention = targets(seed)
        target = store[content_key(release / "imgs" / name)]
        upper = similarity[np.triu_indices(PATCHES, 1)]
        assert np.abs(target.similarity.astype(np.float32) - upper).max() <= off
        np.testing.assert_array_equal(target.attention, attention)
        assert (target.coverage == 255).all()
    identity = store.identity
    assert (identity.teacher, identity.geometry, identity.grid) == (
        "authors-unimed-l",
        "crop",
        (4, 4),
    )
    assert store.namespace.provenance["licence"] == "CC BY-NC 4.0: no commercial use"
    assert all(one.damage is None for one in scan(release / "store"))
    again = json.loads(run(line(release, "--precision", precision, "--json")).stdout)
    assert (again["found"], again["written"]) == (3, 0)


def test_no_teacher_is_asked_for_what_is_imported(release):
    run(line(release))
    words = ("verify", "--resample", "1", "--images", release / "imgs", "--store")
    done = run([str(one) for one in (*words, release / "store")])
    assert "are imported (the authors' cosine_matrix_dict.pkl" in str(done.exception)


def test_other_pickles_are_another_namespace(release):
    run(line(release))
    content = {name: targets(seed + 9)[0] for seed, name in enumerate(NAMES)}
    (release / "cosine_matrix_dict.pkl").write_bytes(pickle.dumps(content))
    run(line(release))
    assert len(list_namespaces(release / "store")) == 2


def test_what_does_not_fit_is_named_and_the_rest_is_written(release):
    cosine = {name: targets(seed)[0] for seed, name in enumerate(NAMES)}
    attention = {name: targets(seed)[1] for seed, name in enumerate(NAMES)}
    for name in ("copy.png", "short.png", "skewed.png", "dark.png", "nan.png", "mapless.png"):
        path = release / "imgs" / name
        source = release / "imgs" / NAMES[0]
        path.write_bytes(source.read_bytes() + (b"" if name == "copy.png" else name.encode()))
        cosine[name], attention[name] = targets(0)
    cosine["gone.png"] = cosine["../made/image000.png"] = targets(0)[0]
    cosine["short.png"] = cosine["short.png"][:9, :9]
    cosine["skewed.png"][2, 3] += 0.1
    attention["dark.png"] = np.zeros(PATCHES, np.float32)
    attention["nan.png"][4] = np.nan
    del attention["mapless.png"]
    (release / "cosine_matrix_dict.pkl").write_bytes(pickle.dumps(cosine))
    (release / "attn_map_dict.pkl").write_bytes(pickle.dumps(attention))
    done = run(line(release, "--json"))
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert (result["images"], result["written"], result["repeated"]) == (11, 3, 1)
    reasons = {row["image"]: row["reason"] for row in result["left_out"]}
    expected = {
        "gone.png": "No such file",
        "../made/image000.png": "leads out of",
        "short.png": "not those of 16 patches",
        "skewed.png": "off a cosine matrix by 0.1",
        "dark.png": "zero everywhere",
        "nan.png": "not finite",
        "mapless.png": "no attention",
    }
    assert reasons.keys() == expected.keys()
    assert all(text in reasons[name] for name, text in expected.items())
    assert run(line(release, "--allow-skips", 7)).exit_code == 0


# what may be in a pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_numpy_and_torch_in_every_protocol(tmp_path, protocol):
    random = np.random.default_rng(0)
    plain = random.random((5, 4)).astype(np.float32)
    tensor = torch.from_numpy(random.random((6, 8)))
    written = {
        "plain": plain,
        "columns": np.asfortranarray(plain),
        "big": plain.astype(">f8"),
        "half": plain.astype(np.float16),
        "count": np.arange(6),
        "empty": np.zeros((0, 3)),
        "part": plain[1:, ::2],
        "turned": random.random((2, 3, 4)).transpose(1, 2, 0),
    }
    tensors = {
        "tensor": tensor,
        "view": tensor[1::2, 2:5].T,
        "half tensor": tensor.half(),
        "bfloat": tensor.bfloat16(),
        "whole": torch.arange(4),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(written | tensors, protocol=protocol))
    found = load_arrays(path)
    assert list(found) == [*written, *tensors]
    for name, values in written.items():
        np.testing.assert_array_equal(found[name], values)
    for name, one in tensors.items():
        assert torch.equal(torch.from_numpy(found[name].copy()), one.to(found_type(one)))


def found_type(tensor):
    return torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype


def test_names_of_numpy_1_are_read(tmp_path):
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=2)
    older = data.replace(b"numpy._core.", b"numpy.core.")
    assert older != data
    (tmp_path / "x.pkl").write_bytes(older)
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.pkl")["a"], np.arange(3.0))


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def test_a_pickle_that_would_run_a_command_is_refused_in_one_line(release):
    touched = release / "touched"
    for file in ("cosine_matrix_dict.pkl", "attn_map_dict.pkl"):
        sound = (release / file).read_bytes()
        content = pickle.loads(sound) | {"z.png": Runs(touched)}
        (release / file).write_bytes(pickle.dumps(content))
        done = run(line(release))
        assert isinstance(done.exception, UserError)
        said = str(done.exception)
        assert f"{file} was not opened: it wants to load posix.system" in said
        assert "\n" not in said
        assert not touched.exists()
        (release / file).write_bytes(sound)
    pickle.loads(pickle.dumps(Runs(touched)))  # the attack itself works
    assert touched.exists()


def _storage_that_runs(path):
    """A tensor's storage whose own pickle runs a command when torch opens it without care."""
    inner = io.BytesIO()
    torch.save(Runs(path), inner, _use_new_zipfile_serialization=False)
    call = b"ctorch.storage\n_load_from_bytes\n"
    data = inner.getvalue()
    return b"\x80\x04}" + text("a") + call + b"B" + struct.pack("<I", len(data)) + data + b"\x85Rs."


def test_a_storage_that_would_run_a_command_is_refused(tmp_path):
    data = _storage_that_runs(tmp_path / "touched")
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pkl was not opened"):
        load_arrays(tmp_path / "x.pkl")
    assert not (tmp_path / "touched").exists()
    pickle.loads(data)  # the attack itself works
    assert (tmp_path / "touched").exists()


START = b"\x80\x04}" + text("a")
GLOBAL = b"cnumpy\ndtype\n"
REFUSED = {
    "object array": pickle.dumps({"a": np.array([{}, "x"], dtype=object)}),
    "records": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}),
    "text array": pickle.dumps({"a": np.array(["x"])}),
    "list": pickle.dumps({"a": [1.0, 2.0]}),
    "no dictionary": pickle.dumps(np.zeros(3)),
    "numbers as names": pickle.dumps({3: np.zeros(3)}),
    "nested": pickle.dumps({"a": {"b": np.zeros(3)}}),
    "a function": START + GLOBAL + b"s.",
    "a function changed": b"\x80\x04}"
    + text("a")
    + GLOBAL
    + b"N}"
    + text("_call")
    + b"K\x01s\x86bs.",
    "an array never filled": b"\x80\x04}"
    + text("a")
    + b"cnumpy.core.multiarray\n_reconstruct\n)Rs.",
    "a class": START + b"cbuiltins\neval\n" + text("1") + b"\x85Rs.",
    "an attribute": START + b"\x8c\x05numpy\x8c\x0cndarray.dump\x93s.",
    "elsewhere": START + text("place") + b"Qs.",
    "cut": pickle.dumps({"a": np.zeros(30)})[:-9],
    "empty": b"",
    "no pickle": b"not a pickle",
    "no zip": b"PK\x03\x04",
    "too few bytes": pickle.dumps({"a": np.zeros(3)}).replace(b"K\x03\x85", b"K\x09\x85"),
    "a subclass": pickle.dumps({"a": np.ma.masked_array([1.0])}),
    "parameters": pickle.dumps({"a": torch.nn.Parameter(torch.zeros(2))}),
    "ordered": pickle.dumps(OrderedDict(a=1)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(UserError, match=r"x\.pkl was not opened: .+; only a dictionary") as refused:
        load_arrays(path)
    assert "\n" not in str(refused.value)
    assert np.dtype("f4").isnative


def test_a_pickle_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.pkl: No such file"):
        load_arrays(tmp_path / "nowhere.pkl")
