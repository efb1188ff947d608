"""Taking targets out of a store: a plain folder, one file per image."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from shared.errors import UserError
from shared.files import refused_as, whole_file
from shared.targets import Target, TargetStore
from shared.vocabulary import ExportForm


def export(
    store: TargetStore,
    folder: str | Path,
    form: ExportForm,
    keys: Iterable[bytes] | None = None,
) -> Iterator[Path]:
    """Write one file per image, named by its content key; yield each.

    It holds `similarity`, `attention` (where the store has it), `coverage`. `identity.json` beside
    them says what they are.
    Files that are there already are not written again.

    Raises
    ------
    UserError
        If the folder holds the export of another identity or grid, or cannot be written.
    """
    out = Path(folder)
    with refused_as(f"cannot write to {out}", "choose another folder or make room"):
        yield from _export(store, out, form, keys)


def _export(
    store: TargetStore, out: Path, form: ExportForm, keys: Iterable[bytes] | None
) -> Iterator[Path]:
    out.mkdir(parents=True, exist_ok=True)
    identity = {
        "fingerprint": store.identity.fingerprint(),
        "grid": list(store.grid),
        "identity": store.identity.document(),
        "provenance": store.namespace.provenance,
    }
    description = out / "identity.json"
    if description.exists():
        found = json.loads(description.read_text())
        if (found["fingerprint"], found["grid"]) != (identity["fingerprint"], identity["grid"]):
            raise UserError(
                f"{out} holds targets of {found['fingerprint'][:12]}: choose an empty folder"
            )
    description.write_text(json.dumps(identity, indent=2) + "\n")
    for key in keys if keys is not None else store.keys():
        path = out / f"{key.hex()}.{form}"
        if not path.exists():
            target, fingerprint = store[key], store.identity.fingerprint()
            whole_file(path, partial(_write, target=target, form=form, fingerprint=fingerprint))
        yield path


def _write(path: Path, target: Target, form: ExportForm, fingerprint: str) -> None:
    arrays = target.arrays()
    with path.open("wb") as file:
        if form == "npz":
            np.savez_compressed(file, allow_pickle=False, **arrays)
        else:
            from safetensors.numpy import save

            file.write(save(arrays, {"fingerprint": fingerprint}))
