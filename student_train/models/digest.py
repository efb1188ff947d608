"""The digest of a base model's weights: what tells two checkpoints of one shape apart.

sha256 over every tensor's name, dtype, shape and bytes, so that a checkpoint in other shards is the
same one. Hashing reads every byte (14 GB: some ten seconds); the result is remembered by the files'
paths, sizes and times, as content keys of images are.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from shared.files import cache_directory, whole_file
from shared.recipe import ModelSection
from student_train.models import checkpoint_of
from student_train.models.folder import checkpoint_folder, open_weights, weight_files

_SETTLED = 3 * 10**9  # nanoseconds; coarser than any file system's clock


def base_digest(model: ModelSection) -> str:
    """Return the digest, 64 hexadecimal digits, of the weights that a recipe's `model` names.

    Where `vision_weights` is `openai`, that tower's weights are a part of them.

    Raises
    ------
    UserError
        No such checkpoint, or a damaged one.
    """
    digests = [folder_digest(checkpoint_of(model))]
    if model.vision_weights == "openai":
        digests.append(folder_digest(checkpoint_folder(model.vision_path)))
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def folder_digest(folder: Path) -> str:
    """Return the digest of the weight files of a checkpoint folder."""
    files = weight_files(folder)
    remembered = cache_directory() / "weights" / _state(files)
    if remembered.is_file():
        known = remembered.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    digest = _digest(files)
    newest = max(max(file.stat().st_mtime_ns, file.stat().st_ctime_ns) for file in files)
    # A file that was touched within the last seconds could change again without a trace.
    if time.time_ns() - newest > _SETTLED and remembered.name == _state(files):
        _remember(remembered, digest)
    return digest


def _digest(files: list[Path]) -> str:
    import torch

    whole = hashlib.sha256()
    with open_weights(files) as readers:
        for name in sorted(readers):
            tensor = readers[name]().detach().contiguous()
            whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            if tensor.numel():
                whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _state(files: list[Path]) -> str:
    states = []
    for file in files:
        status = file.stat()
        path = os.path.abspath(file)  # noqa: PTH100 - links stay: a hub's cache is made of them
        states.append([path, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return hashlib.sha256(json.dumps(states).encode("utf-8", "surrogateescape")).hexdigest()


def _remember(path: Path, digest: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_file(path, lambda partial: partial.write_text(digest, encoding="ascii"))
    except OSError:  # no place for a cache: hash again next time
        return
