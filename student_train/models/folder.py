"""Checkpoint folders.

From the disk or from the hub, with every shard there and whole before anything is built.
"""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from shared.console import note
from shared.errors import UserError, did_you_mean
from shared.files import whole_file
from shared.hub import NotFetchedError, snapshot

CONFIG = "config.json"
# model_type of an exported model that needs W. Its own configuration and type stand apart: a class
# of transformers takes any part of the file that names its type.
ROTATED = "medalign"
BASE, BASE_TYPE = "base_config", "base_model_type"
NEEDED = "this model needs its rotation: load it with medalign's student_train.load"
# Weights, configuration, tokenizer and the recipe of an export; never code.
_WANTED = (
    "*.json",
    "recipe.yaml",
    "*.safetensors",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
)


class UnreachedError(UserError):
    """A hub id whose files can be had neither from the hub nor from its cache."""


def local_folder(place: str, revision: str | None = None) -> Path | None:
    """Return the folder here that `place` names; None for a hub id. Nothing is fetched.

    Raises
    ------
    UserError
        A folder that is not there, or holds no checkpoint. `runs/bsae` is one beside `runs/base`,
        though it could be a hub id by its form.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{folder} holds no {CONFIG}; give the folder that holds the model's config and "
                "weights"
            )
        if revision is not None:
            raise UserError(
                f"model.revision={revision} is for hub ids, but {place} is a folder here; leave it "
                "out"
            )
        return folder
    if folder.is_absolute() or place.startswith((".", "~")) or place.count("/") != 1:
        raise UserError(
            f"no model folder at {place}, and it is no hub id such as owner/name either"
        )
    if folder.parent.is_dir() and not _cached(place):
        beside = [str(one) for one in folder.parent.iterdir() if (one / CONFIG).is_file()]
        there = f"model folders there are {', '.join(sorted(beside)[:5])}"
        hint = did_you_mean(place, beside, there if beside else "it holds no model folder")
        raise UserError(
            f"no model folder at {place}, where a folder {folder.parent} is; {hint} (the model "
            f"{place} of the hub would be meant where no such folder is)"
        )
    return None


def _cached(place: str) -> bool:
    """Whether the hub library's cache has the model of this id."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}").is_dir()


def checkpoint_folder(
    place: str, revision: str | None = None, wanted: Sequence[str] = _WANTED
) -> Path:
    """Return the local folder of `place`.

    A folder, or a hub id, whose files of the `wanted` patterns are fetched into the hub library's
    cache.

    Raises
    ------
    UserError
        Neither a checkpoint folder nor a hub id that can be reached (an `UnreachedError`).
    """
    here = local_folder(place, revision)
    if here is not None:
        return here
    note(f"model: {place} from the hub (kept in its cache)")
    try:
        folder = snapshot(place, wanted, revision)
        # a tower in a sub-folder may have some
        if wanted is _WANTED and not any(folder.glob("*.safetensors")):
            folder = snapshot(place, [*_WANTED, "*.bin"], revision)
    except NotFetchedError as error:
        raise UnreachedError(
            f"cannot fetch {place} from the hub ({error}), and no folder is called so; name a "
            "local copy: model.path of a named model, model.name of any other"
        ) from None
    return folder


def read_config(folder: Path) -> dict[str, object]:
    """Read `config.json` of a checkpoint folder; of one that needs W, the model's own part."""
    config = _config(folder)
    base = config.get(BASE)
    if config["model_type"] != ROTATED or not isinstance(base, dict):
        return config
    return base | {"model_type": config.get(BASE_TYPE)}


def is_rotated(folder: Path) -> bool:
    """Whether the model of a folder is right only with the rotation that lies beside it."""
    return _config(folder)["model_type"] == ROTATED


def mark_rotated(folder: Path) -> None:
    """Give a saved model an architecture name of its own.

    Other software that would load the folder without W then fails, instead of answering as
    another model.
    """
    base = read_config(folder)
    config = {
        "model_type": ROTATED,
        "architectures": ["MedAlignForConditionalGeneration"],
        BASE_TYPE: base.pop("model_type"),
        BASE: base,
        # Where a class of transformers expects its parts, which would be its defaults else.
        "text_config": NEEDED,
        "vision_config": NEEDED,
    }
    whole_file(
        folder / CONFIG,
        lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
    )


def _config(folder: Path) -> dict[str, object]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path} names no model_type; it is not a model's config")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files, safetensors before .bin.

    They are checked to be there, and whole as far as can be seen cheaply.

    Raises
    ------
    UserError
        No weights, a shard of the index that is missing, a file shorter or longer than its header
        says.
    """
    for index_name, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        index = folder / index_name
        if index.is_file():
            files = [folder / name for name in sorted(set(_weight_map(index).values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(
                    f"{folder}: {len(missing)} of {len(files)} weight shards are missing, first "
                    f"{missing[0]}; copy them"
                )
            break
        if (folder / single).is_file():
            files = [folder / single]
            break
    else:
        raise UserError(
            f"{folder} holds no weights (model.safetensors, pytorch_model.bin or an index of "
            "shards)"
        )
    for file in files:
        if file.suffix == ".safetensors":
            _check_length(file)
    return files


@contextmanager
def open_weights(files: list[Path]) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """Open weight files; yield for every key a function that reads its tensor.

    `.bin` files are read `weights_only`.

    Raises
    ------
    UserError
        A file that is damaged, or holds anything but tensors.
    """
    import pickle
    import zipfile
    from contextlib import ExitStack

    import torch
    from safetensors import SafetensorError, safe_open

    readers: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    handle = stack.enter_context(safe_open(file, framework="pt"))
                    readers |= {
                        key: (lambda handle=handle, key=key: handle.get_tensor(key))
                        for key in handle.keys()  # noqa: SIM118 - no dict, only keys
                    }
                else:
                    # Files of torch before 1.6 are no zip archives and cannot be mapped.
                    state = torch.load(
                        file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
                    )
                    readers |= {key: (lambda state=state, key=key: state[key]) for key in state}
            except (
                SafetensorError,
                pickle.UnpicklingError,
                RuntimeError,
                OSError,
                EOFError,
                ValueError,
            ) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{file} is damaged or no plain weights file ({reason}); copy it again"
                ) from None
        yield readers


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of weight shards: {error}") from None
    if not all(isinstance(name, str) and Path(name).name == name for name in weight_map.values()):
        raise UserError(f"{index} names files outside its folder")
    return dict(weight_map)


def _check_length(file: Path) -> None:
    """Compare a safetensors file's length with its header.

    An 8-byte length, a JSON header, the tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = stream.read(length) if length <= size - 8 else b""
    try:
        entries = json.loads(header)
        expected = (
            8
            + length
            + max(
                (one["data_offsets"][1] for key, one in entries.items() if key != "__metadata__"),
                default=0,
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        expected = None
    if expected != size:
        what = "its header is damaged" if expected is None else f"it has {size} of {expected} bytes"
        raise UserError(f"{file} is not whole: {what}; copy it again")
