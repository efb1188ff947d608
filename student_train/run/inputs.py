"""What a run reads: the base model, records joined with their targets, their order, batches."""

from collections.abc import Sequence
from pathlib import Path

from shared.console import note, warn
from shared.errors import UserError
from shared.imaging.squares import Fill, mean_colour
from shared.processes import is_main_process
from shared.recipe import Recipe
from shared.records import Record, load_records
from shared.targets import TargetStore
from student_train.adapter.provenance import Teacher
from student_train.data.batches import Collator
from student_train.data.files import Share, load_set, name_of, training_files, validation_root
from student_train.data.join import ComputeTargets, Join, join, open_maps, open_stores
from student_train.data.order import EpochOrder
from student_train.data.samples import AlignmentData
from student_train.models import load_base
from student_train.models.base import BaseStudent
from student_train.run.parts import RunArguments


def load_student_base(recipe: Recipe) -> BaseStudent:
    """Load the base model, frozen, in the recipe's precision."""
    import torch

    # The projector's warm-up trains base weights themselves: they stay float32, autocast does the
    # rest.
    half = recipe.train.precision == "bf16" and recipe.train.tune == "lora"
    base = load_base(recipe.model, torch.bfloat16 if half else torch.float32)
    base.model.requires_grad_(False)
    return base


def prepare_data(
    recipe: Recipe, base: BaseStudent, compute_targets: ComputeTargets | None = None
) -> tuple[AlignmentData, AlignmentData | None]:
    """Read and check the records, join them with the store.

    The validation set only where evaluations are wanted.

    Raises
    ------
    UserError
        Everything that `AlignmentData` and `join` refuse.
    """
    aligned = recipe.train.tune == "lora" and recipe.losses.aligned
    stores = open_stores(recipe, base.grid) if aligned else []
    maps = open_maps(recipe, base.grid) if aligned else None
    processor = base.processor(recipe.data.geometry, _colour(recipe, stores))

    def make(
        records: list[Record], path: str, root: Path, shares: Sequence[Share] | None = None
    ) -> AlignmentData:
        if recipe.train.tune == "projector":
            check_shown(records, path)
        joined = None
        if aligned:
            joined = join(records, path, root, recipe, stores, compute_targets, maps)
        made = AlignmentData(
            records,
            root,
            processor,
            joined,
            recipe.data.max_length,
            recipe.data.truncation,
            not is_main_process(),
            shares,
        )
        if maps is not None:
            _say_maps(made, path)
        return made

    files = training_files(recipe)  # checked to be there when the run began
    records, root, shares = load_set(files)
    train_data = make(records, name_of(files), root, shares)
    validation = recipe.data.validation
    if validation is None or not recipe.train.eval_steps:
        return train_data, None
    held_out = load_records(validation)[: recipe.train.eval_samples or None]
    return train_data, make(held_out, validation, validation_root(recipe))


def _say_maps(data: AlignmentData, path: str) -> None:
    """Say how many questions have a map of their own: the others are taught E_a.

    Raises
    ------
    UserError
        None has one.
    """
    if not data.mapped:
        raise UserError(
            f"{path}: none of {data.asked} questions has a map in targets.maps; make them with "
            "`cache query maps --data`, or set losses.attention_target=image"
        )
    if is_main_process():
        found = f"{data.mapped} of {data.asked} questions have a map of their own"
        note(f"{path}: {found}, the others keep E_a")


def padded(recipe: Recipe, colour: Fill | None) -> Recipe:
    """Return the recipe with the colour around images that a run takes."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"padding": colour})})


def _colour(recipe: Recipe, stores: Sequence[TargetStore]) -> Fill | None:
    """Return the colour that the stores' teacher saw around the images.

    Only so do both see the same picture. What the recipe itself says goes before; of several
    teachers the first counts.
    """
    own = recipe.data.padding
    if recipe.data.geometry != "pad" or not stores:
        return own
    colours = [mean_colour(store.identity.preprocessing.mean) for store in stores]
    taken = colours[0] if own is None else own
    if set(colours) != {taken}:
        seen = ", ".join(map(str, colours))
        warn(f"images are padded with {taken}, and the teachers saw them on squares of {seen}")
    return taken


def teachers_of(joined: Join | None) -> list[Teacher]:
    """Return the namespaces that a run's targets come from."""
    return [
        {"teacher": store.identity.teacher, "fingerprint": store.identity.fingerprint()}
        for store in ([] if joined is None else joined.stores)
    ]


def check_shown(records: Sequence[Record], path: str) -> None:
    """Raise a `UserError` where a projector's run has records of text alone: nothing is trained."""
    bare = [record.id for record in records if not record.images]
    if bare:
        raise UserError(
            f"{path}: {len(bare)} records show no image, first {', '.join(bare[:3])}; text alone "
            "trains nothing of the projector (train.tune=projector), take them out"
        )


def make_order(data: AlignmentData, recipe: Recipe, arguments: RunArguments) -> EpochOrder:
    """Return the order of the training set for the effective batch of a run."""
    over_ranks = arguments.train_batch_size * arguments.world_size
    segments = None
    if recipe.data.group_by_segment and data.targets is not None:
        segments = data.targets.segments([one.references(data.image_root) for one in data.records])
    return EpochOrder(
        data.lengths,
        recipe.train.seed,
        over_ranks * arguments.gradient_accumulation_steps,
        over_ranks if arguments.world_size > 1 else 1,
        segments,
        data.shares,
    )


def make_collator(recipe: Recipe, base: BaseStudent) -> Collator:
    """Return the collator of the recipe's losses."""
    pad = base.tokenizer.pad_token_id
    if pad is None:
        raise ValueError("the base model's tokenizer has no padding token")
    losses = recipe.losses
    return Collator(pad, base.image_tokens, losses.attention_rows, losses.mask_padding)
