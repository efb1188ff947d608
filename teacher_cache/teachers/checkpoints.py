"""Weights as teachers are published: one file, a folder with one, or a hub id.

Nothing is ever unpickled freely.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import UserError
from shared.hub import offline_if_unreachable

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")


def find_weights(weights: str, hub_files: Iterable[str] = ()) -> Path:
    """Return the weights file behind `--weights`.

    The file itself, the one in a folder, or one fetched from a hub id.

    Parameters
    ----------
    weights
        Path of a file or folder, or a hub id such as
        `microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224`.
    hub_files
        File names to ask the hub for, the first that exists wins.

    Raises
    ------
    UserError
        No such path, a folder with no or several candidates, a hub id that cannot be fetched.
    """
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, set(hub_files))
    local = path.suffix in SUFFIXES or weights.startswith((".", "/", "~"))
    if weights.count("/") == 1 and not local:
        return _fetch(weights, tuple(hub_files))
    raise UserError(f"no weights at {path}: --weights takes a file, a folder or a hub id")


def _in_folder(folder: Path, wanted: set[str]) -> Path:
    found = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    preferred = [file for file in found if file.name in wanted] or found
    if len(preferred) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(
            f"{folder} must hold one weights file ({', '.join(SUFFIXES)}), found {names}: name "
            "the file itself"
        )
    return preferred[0]


def _fetch(repository: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    candidates = files or (
        "model.safetensors",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    reason = ""
    offline_if_unreachable()
    for name in candidates:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError as error:
            reason = str(error)
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error)
            break
    raise UserError(
        f"{repository} is no local path, and the hub did not give {' or '.join(candidates)} "
        f"({' '.join(reason.split())[:200]}): download the file and pass its path as --weights"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name: safetensors, or a torch file with `weights_only=True`, on the CPU.

    Of a training checkpoint the `state_dict` (or `model`) is taken; a `module.` or `_orig_mod.`
    before all names goes.

    Raises
    ------
    UserError
        The file is broken, or would run code when loaded.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle errors share no base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be loaded as plain tensors ({type(error).__name__}: {reason})"
        ) from None
    for name in ("state_dict", "model"):
        if isinstance(document, Mapping) and isinstance(document.get(name), Mapping):
            document = document[name]
            break
    if not isinstance(document, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in document.values()
    ):
        raise UserError(f"{path} holds no state_dict of tensors")
    return _without_wrapper({str(name): tensor for name, tensor in document.items()})


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def tensors_below(tensors: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """Return the tensors under `prefix`, without it; a `UserError` where there are none."""
    found = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    if not found:
        raise UserError(f"the weights are not those of {name}: no tensor is called {prefix}*")
    return found


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes, sorted by name.

    A re-saved file is the same teacher.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load `tensors` into `model`.

    A missing, unexpected or misshapen tensor is a `UserError` that names it.
    """
    expected: Mapping[str, Tensor] = model.state_dict()
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    misshapen = [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape]
    if missing or unexpected or misshapen:
        faults = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        if unexpected:
            faults.append(f"has {unexpected[0]} and {len(unexpected) - 1} more that do not belong")
        faults += [
            f"has {name} of shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
            for name in misshapen[:1]
        ]
        raise UserError(f"the weights are not those of {what}: the file {'; '.join(faults)}")
    model.load_state_dict(dict(tensors))
