"""Everything that can be checked before a model is loaded: seconds, where loading takes minutes."""

import time
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.files import check_writable
from shared.processes import this_process
from shared.recipe import Recipe
from shared.records import load_records
from student_train.data.files import training_files, validation_root
from student_train.models import check_place
from student_train.run.deepspeed_file import DeepSpeedConfig, deepspeed_config, zero_stage
from student_train.run.environment import check_hub, check_trackers, use_cpu
from student_train.run.origin import Origin, check_files, origin_of, with_fingerprints
from student_train.run.outputs import check_output, last_checkpoint
from student_train.run.resharding import check_effective_batch


class Beginning(NamedTuple):
    """What is known of a run before anything is loaded."""

    recipe: Recipe  # with the fingerprints of the run that it continues or repeats
    cpu: bool
    config: DeepSpeedConfig | None
    checkpoint: Path | None
    origin: Origin | None
    begun: float  # `time.perf_counter()`

    @property
    def output(self) -> Path:
        """Its folder."""
        return Path(self.recipe.output)


def begin(
    recipe: Recipe,
    *,
    resume: bool = False,
    repeats: Path | None = None,
    scored: bool = False,
    computed: bool = False,
) -> Beginning:
    """Check recipe, output, the base model's place, data files, images and store.

    Parameters
    ----------
    resume
        Continue from the last checkpoint of the output folder.
    repeats
        The recipe's file.
    scored, computed
        Whether callables rate answers and compute missing targets.

    Raises
    ------
    UserError
        What would stop the run later, in one line.
    """
    from student_train.run.evaluation import check_metric

    begun = time.perf_counter()
    cpu, config = use_cpu(recipe), deepspeed_config(recipe)
    if recipe.train.tune == "projector" and zero_stage(config) == 3:
        raise UserError(
            "train.tune=projector saves the whole model, which ZeRO-3 shards; use deepspeed=zero2"
        )
    check_metric(recipe, scored)
    check_trackers(recipe)
    check_hub(recipe)
    output = Path(recipe.output)
    checkpoint = check_output(output, recipe, resume)
    check_writable(output, "choose another output=...")
    if checkpoint is not None:
        check_effective_batch(checkpoint, recipe, this_process().world)
    _check_named(recipe)
    check_place(recipe.model)
    origin = origin_of(recipe, checkpoint, repeats)
    recipe = with_fingerprints(recipe, origin)
    check_files(origin, recipe)
    _check_records(recipe, computed)
    return Beginning(recipe, cpu, config, checkpoint, origin, begun)


def chosen_targets(recipe: Recipe, path: Path, resume: bool) -> Recipe:
    """Return the recipe with the fingerprints of the run that it continues or repeats.

    For callables that open the store themselves.
    """
    checkpoint = last_checkpoint(Path(recipe.output)) if resume else None
    return with_fingerprints(recipe, origin_of(recipe, checkpoint, path))


def _check_named(recipe: Recipe) -> None:
    """Refuse data files that are not named or not there."""
    if recipe.data.train is None:
        raise UserError(
            "data.train is not set; name the training file, such as data.train=train.json"
        )
    named = [("train", file.path) for file in training_files(recipe)]
    for name, file in (*named, ("validation", recipe.data.validation)):
        if file is not None and not Path(file).is_file():
            raise UserError(f"data.{name}={file} is not there; name a file of records")


def _check_records(recipe: Recipe, computed: bool) -> None:
    """Read every record, find every image, and look it up where one namespace alone is meant."""
    from student_train.data.join import check_targets, content_keys

    aligned = recipe.train.tune == "lora" and recipe.losses.aligned
    read = [(file.path, file.root) for file in training_files(recipe)]
    if recipe.data.validation is not None:
        read.append((recipe.data.validation, validation_root(recipe)))
    for file, root in read:
        if aligned:
            keys = content_keys(load_records(file), root)
            if not keys:
                raise UserError(
                    f"{file} shows no image, so losses.alpha and losses.beta have nothing to "
                    "align: name the images in the field `image`, or set both to 0"
                )
            check_targets(keys, file, root, recipe, computed)
        else:
            load_records(file, root)
