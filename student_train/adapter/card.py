"""The model card that is written with every adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.recipe import ModelSection, Recipe
from student_train.data.files import training_files
from student_train.models import FAMILIES

# The hub's name of what loads the folder, and what that alone would do to W; for an adapter and for
# a whole model.
_ADAPTER = (
    "library_name: peft",
    "; bare PEFT would drop W (`rotation.safetensors`) without a word",
)
_WHOLE = (
    "library_name: transformers",
    "; transformers alone would leave W (`rotation.safetensors`) out, and refuses the folder",
)


class Taught(NamedTuple):
    """A teacher whose targets a student was trained with: what was trained is bound by its licence.

    `licence` is what the store's provenance says of its weights; None where that says nothing.
    """

    teacher: str
    licence: str | None
    fingerprint: str | None = None  # of the store's namespace

    def line(self) -> str:
        """Return the card's line."""
        licence = self.licence or "see where its weights come from"
        store = "" if self.fingerprint is None else f", store `{self.fingerprint}`"
        return f"- Teacher: `{self.teacher}`{store}, licence of its weights: {licence}"


def write_card(
    recipe: Recipe,
    folder: Path,
    history: Sequence[Mapping[str, float]],
    teachers: Sequence[Taught],
) -> None:
    """Write `README.md` beside the adapter.

    What it is, what it was taught by, its losses, and what it is not for.

    Parameters
    ----------
    history
        The trainer's log.
    teachers
        Of the stores it was trained with; empty without alignment.
    """
    base = base_id(recipe.model)
    library, warning = _ADAPTER if recipe.train.tune == "lora" else _WHOLE
    rotated = recipe.train.tune == "lora" and recipe.rotation.kind != "none"
    lines = [
        "---",
        library,
        *([f"base_model: {base}"] if base is not None else []),
        "tags: [medalign, medical, visual-question-answering]",
        "---",
        "",
        f"# {recipe.train.run_name or folder.name}",
        "",
        "**Not for clinical use.** A research model: its answers are no medical advice and not "
        "validated.",
        "",
        f"- Base model: `{recipe.model.name}`",
        f"- Trained: {'LoRA and rotation W' if rotated else 'LoRA'}"
        if recipe.train.tune == "lora"
        else "- Trained: the multimodal projector",
        f"- Data: {_data_line(recipe)}",
    ]
    lines += [teacher.line() for teacher in teachers]
    if teachers:
        lines.append(
            f"- Losses: alpha {recipe.losses.alpha}, beta {recipe.losses.beta} "
            f"({recipe.losses.attention_normalization}), "
            f"layer {', '.join(map(str, recipe.losses.layers))}"
        )
    lines += [*_settings(recipe), *_software(), *_last_losses(history)]
    lines.append(
        "- Licence of the data: that of its owners, which binds the adapter too; see there"
    )
    how = (
        "student_train.load(folder)"
        if recipe.train.tune == "lora"
        else "student train recipe.yaml model.name=FOLDER"
    )
    lines += ["", f"Load it with `{how}`{warning if rotated else ''}.", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _settings(recipe: Recipe) -> list[str]:
    """Return the hyper-parameters; `recipe.yaml` beside the card has them all."""
    section = recipe.train
    length = f"{section.max_steps} steps" if section.max_steps > 0 else f"{section.epochs:g} epochs"
    lines = [
        f"- Training: {length}, batch {section.batch_size} x accumulation {section.accumulation} a "
        f"process, learning rate {section.learning_rate:g} ({section.schedule}), seed "
        f"{section.seed}, precision {section.precision}"
    ]
    if section.tune == "lora":
        lines.append(f"- LoRA: rank {recipe.lora.r}, alpha {recipe.lora.alpha:g}")
    return lines


def _software() -> list[str]:
    from student_train.adapter.provenance import software_versions

    named = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    return [f"- Made with: {named}"]


def _last_losses(history: Sequence[Mapping[str, float]]) -> list[str]:
    last = next((row for row in reversed(history) if "loss_lm" in row), None)
    if last is None:
        return []
    names = ("loss", "loss_lm", "loss_vis", "loss_att")
    terms = ", ".join(f"{name} {last[name]:.4g}" for name in names if name in last)
    return [f"- Last logged step {last['step']}: {terms}"]


def merged_card(text: str) -> str:
    """Return the card of an adapter as that of the whole model into which it was merged."""
    for adapter, whole in zip(_ADAPTER, _WHOLE, strict=True):
        text = text.replace(adapter, whole)
    return text


def base_id(model: ModelSection) -> str | None:
    """Return the base model's hub id.

    None for a local folder, since the hub refuses a card that names a path.
    """
    if model.name in FAMILIES:
        return FAMILIES[model.name].hub_id
    return (
        None if Path(model.name).expanduser().exists() or model.name.count("/") != 1 else model.name
    )


def _data_line(recipe: Recipe) -> str:
    """Name the training files, with their weights where they have some."""
    files = training_files(recipe)
    weighted = any(file.weight != 1 for file in files)
    return ", ".join(
        f"`{Path(file.path).name}`" + (f" x {file.weight:g}" if weighted else "") for file in files
    )
