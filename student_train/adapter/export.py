"""`student export`: one folder with LoRA merged into the base weights and W beside it.

And uploads.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from shared.console import say, warn
from shared.errors import UserError
from shared.files import check_writable, whole_file
from shared.hub import NotUploadedError, upload
from shared.processes import no_gpu_for_deepspeed
from shared.recipe import save_recipe
from student_train.adapter.card import merged_card
from student_train.adapter.files import RECIPE, ROTATION_WEIGHTS, adapter_recipe
from student_train.adapter.provenance import PROVENANCE, check_base
from student_train.imagetext import HookedModel
from student_train.models.folder import mark_rotated


def export(
    folder: Path, to: Path, base: str | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write the adapter of `folder`, merged, as a plain model folder at `to`.

    LoRA merges into the weights. W cannot: it acts on image tokens only, between two layers. It
    stays its own file, and `student_train.load(to)` puts it back. Other software would leave it
    out, so the folder has an architecture name of its own there. Without W it is a plain
    transformers model, which pipelines and servers load.

    The weights keep the type that the base is stored in, or get `dtype`. Each layer's sum is made
    in float32 and rounded to it once; no second copy of the model is held.

    Raises
    ------
    UserError
        A folder that is not empty; an adapter that cannot be loaded.
    """
    import shutil

    from student_train.adapter.loading import base_section, load_adapter
    from student_train.models import load_base
    from student_train.models.saving import save_base

    check_writable(to, "choose another --to")
    if to.exists() and any(to.iterdir()):
        raise UserError(f"{to} is not empty; choose a new folder")
    recipe = adapter_recipe(folder)
    no_gpu_for_deepspeed()  # transformers' saving imports DeepSpeed, which would ask
    section = base_section(folder, recipe, base)
    check_base(folder, section)
    loaded = load_base(section, dtype)
    student = load_adapter(loaded.model, loaded.image_token_id, folder, recipe)
    merged = student.model.merge_and_unload()
    del cast(HookedModel, merged).rotation  # saved as its own file below
    to.mkdir(parents=True, exist_ok=True)
    whole = replace(loaded, model=merged, geometry=recipe.data.geometry)
    # The base weights come last: without them nothing loads the folder, and with them W and its
    # recipe are there.
    whole_file(to / RECIPE, lambda path: save_recipe(recipe, path))
    for name in (PROVENANCE, ROTATION_WEIGHTS):
        if (folder / name).is_file():
            shutil.copy2(folder / name, to / name)
    card = folder / "README.md"
    if card.is_file():  # a checkpoint has none
        (to / card.name).write_text(merged_card(card.read_text(encoding="utf-8")), encoding="utf-8")
    save_base(whole, to)
    if (to / ROTATION_WEIGHTS).is_file():
        mark_rotated(to)
    say(f"merged model: {to}; load it with student_train.load({str(to)!r})")
    return to


def push(folder: Path, repository: str) -> None:
    """Upload a finished folder as a private repository of the hub, without checkpoints and logs."""
    warn("weights trained on patient data may reveal it; upload only what your data's terms allow")
    try:
        whole_id = upload(
            folder, repository, unwanted=["checkpoint-*", "runs/*", "samples.jsonl", ".*"]
        )
    except NotUploadedError as error:
        raise UserError(
            f"upload of {folder} to {repository} failed ({error}); the folder itself is complete"
        ) from None
    say(f"uploaded: {whole_id} (private)")
