"""What weights were trained with: mean, deviation, interpolation and activation.

These settings come from where the weights come from: the tag of a registry, the
`open_clip_config.json` or `config.json` beside a file, or the user's own word for a bare file. Two
sources that disagree are an error.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.hub import offline_if_unreachable
from shared.targets import Preprocessing
from shared.vocabulary import Interpolation

Colours = tuple[float, float, float]
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

TOLERANCE = 1e-3  # of a channel's mean or deviation: published values are rounded
OPEN_CLIP_CONFIG, TIMM_CONFIG = "open_clip_config.json", "config.json"


class Trained(NamedTuple):
    """Settings that a source states; None where it says nothing.

    Attributes
    ----------
    mean, std
        Of each channel, on the scale 0 to 1.
    interpolation
        Of the resize to the encoder's size.
    quick_gelu
        Whether the blocks' activation is QuickGELU, x * sigmoid(1.702 x).
    """

    mean: Colours | None = None
    std: Colours | None = None
    interpolation: Interpolation | None = None
    quick_gelu: bool | None = None


class Source(NamedTuple):
    """Who states the settings, in words for a message, and what they are."""

    name: str
    trained: Trained


NOT_SAID = Trained()
# What open_clip takes where its own file leaves a key out (`PreprocessCfg`).
OPEN_CLIP = Trained(OPENAI_MEAN, OPENAI_STD, "bicubic")
FLAGS = {
    "mean": "--mean R,G,B",
    "std": "--std R,G,B",
    "interpolation": "--interpolation",
    "quick_gelu": "--quick-gelu or --no-quick-gelu",
}


def stated(
    mean: str | None, std: str | None, interpolation: Interpolation | None, quick_gelu: bool | None
) -> Trained:
    """Return what a command line says of bare weights; colours are written R,G,B."""
    return Trained(
        None if mean is None else _parsed("--mean", mean),
        None if std is None else _parsed("--std", std),
        interpolation,
        quick_gelu,
    )


def _parsed(flag: str, text: str) -> Colours:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = float("nan")
    smallest = 1e-6 if flag == "--std" else 0.0
    if not all(smallest <= value <= 1 for value in (red, green, blue)):
        raise UserError(
            f"{flag} {text!r} is not three numbers R,G,B on the scale 0 to 1, such as 0.5,0.5,0.5"
        )
    return red, green, blue


def of_mapping(document: Mapping[str, object], where: str) -> Trained:
    """Read mean, std, interpolation and quick_gelu of a registry's or file's settings."""
    quick = document.get("quick_gelu")
    return Trained(
        _colours(document.get("mean"), f"{where}: mean"),
        _colours(document.get("std"), f"{where}: std"),
        _interpolation(document.get("interpolation"), where),
        quick if isinstance(quick, bool) else None,
    )


def _colours(value: object, where: str) -> Colours | None:
    if value is None:
        return None
    if isinstance(value, int | float):
        value = [value] * 3
    if not isinstance(value, Sequence) or len(value) != 3:
        raise UserError(f"{where} is not three numbers")
    a, b, c = (float(channel) for channel in value)
    return a, b, c


def _interpolation(value: object, where: str) -> Interpolation | None:
    if value in (None, ""):
        return None
    if value not in ("bicubic", "bilinear"):
        raise UserError(
            f"{where}: these weights were trained with {value} resizing, which is neither bicubic "
            "nor bilinear: choose others"
        )
    return value


def agreed(name: str, sources: Iterable[Source]) -> Trained:
    """Return what all sources say together, the first one's value where several agree.

    Raises
    ------
    UserError
        Two of them disagree.
    """
    found: dict[str, tuple[str, object]] = {}
    together = NOT_SAID
    for source in sources:
        together = or_else(together, source.trained)
        for field, value in source.trained._asdict().items():
            if value is None:
                continue
            known = found.setdefault(field, (source.name, value))
            if not _same(known[1], value):
                raise UserError(
                    f"teacher {name}: {known[0]} says {field} {_shown(known[1])}, {source.name} "
                    f"says {_shown(value)}; keep the one that these weights were trained with"
                )
    return together


def or_else(first: Trained, second: Trained) -> Trained:
    """Return `first`, and what `second` says where it says nothing."""
    return Trained(
        second.mean if first.mean is None else first.mean,
        second.std if first.std is None else first.std,
        second.interpolation if first.interpolation is None else first.interpolation,
        second.quick_gelu if first.quick_gelu is None else first.quick_gelu,
    )


def alike(settings: Sequence[Trained]) -> Trained:
    """Return the fields in which all settings agree, None for the others."""
    if not settings:
        return NOT_SAID
    first = settings[0]

    def shared(field: str) -> bool:
        return all(_same(getattr(first, field), getattr(one, field)) for one in settings)

    return Trained(
        first.mean if shared("mean") else None,
        first.std if shared("std") else None,
        first.interpolation if shared("interpolation") else None,
        first.quick_gelu if shared("quick_gelu") else None,
    )


def of_file(weights: str, trained: Trained, registered: Iterable[Trained]) -> Trained:
    """Return `trained`, and for a local file in what all registered weights of its model agree.

    A file on the hub comes with its own settings, so nothing is taken for granted there.
    """
    local = Path(weights).expanduser().exists()
    return or_else(trained, alike(list(registered))) if local else trained


def tag_hint(tags: Sequence[str], tag: str, named: str) -> str:
    """Say that a tag would tell the settings, "" where there are none or one is given."""
    return f", or name the tag as {named} ({', '.join(tags)})" if tags and not tag else ""


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(abs(x - y) <= TOLERANCE for x, y in zip(a, b, strict=True))
    return a == b


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{channel:g}" for channel in value)
    return str(value)


def complete(name: str, trained: Trained, fields: Sequence[str], hint: str) -> Trained:
    """Return `trained` where every field is known; otherwise name the options that say it.

    Raises
    ------
    UserError
        The weights' settings are unknown: a guess would make wrong targets without a word.
    """
    unknown = [field for field in fields if getattr(trained, field) is None]
    if unknown:
        flags = ", ".join(FLAGS[field] for field in unknown)
        raise UserError(
            f"teacher {name}: nothing says with which {', '.join(unknown)} these weights were "
            f"trained; pass {flags}{hint}"
        )
    return trained


def preprocessing_of(size: int, trained: Trained) -> Preprocessing:
    """Return the preprocessing of complete settings."""
    if trained.mean is None or trained.std is None or trained.interpolation is None:
        raise ValueError("the settings are not complete")
    return Preprocessing(
        size=size, mean=trained.mean, std=trained.std, interpolation=trained.interpolation
    )


def check_stated(name: str, said: Trained, preprocessing: Preprocessing, quick: bool) -> None:
    """Refuse options that contradict a teacher whose settings are known."""
    own = Trained(preprocessing.mean, preprocessing.std, preprocessing.interpolation, quick)
    agreed(name, [Source("the teacher itself", own), Source("the command line", said)])


class Configs(NamedTuple):
    """The JSON documents that lie beside weights, None where there is none."""

    open_clip: Mapping[str, object] | None
    timm: Mapping[str, object] | None


def configs_beside(weights: str, file: Path) -> Configs:
    """Read the settings that were published with a weights file: beside it, or on the hub.

    Parameters
    ----------
    weights
        What `--weights` said: a path or a hub id.
    file
        The weights file that it led to.
    """
    local = Path(weights).expanduser().exists()
    found = {
        name: _document(file.parent / name if local else _hub_file(weights, name))
        for name in (OPEN_CLIP_CONFIG, TIMM_CONFIG)
    }
    timm = found[TIMM_CONFIG]
    if timm is not None and not isinstance(timm.get("pretrained_cfg"), Mapping):
        timm = None  # of transformers, which has a file of that name too
    return Configs(found[OPEN_CLIP_CONFIG], timm)


def _hub_file(repository: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    offline_if_unreachable()
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        return None  # what is missing is asked for by `complete`
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} of {repository} could not be fetched ({reason}): download the folder and pass "
            "its path as --weights"
        ) from None


def _document(path: Path | None) -> Mapping[str, object] | None:
    if path is None or not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}): mend or remove it") from None
    return document if isinstance(document, Mapping) else None


def part(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return the object under `key`, empty where there is none."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def of_open_clip_config(document: Mapping[str, object]) -> Trained:
    """Read the settings of an `open_clip_config.json`: `preprocess_cfg`, and `model_cfg`'s GELU."""
    said = of_mapping(part(document, "preprocess_cfg"), OPEN_CLIP_CONFIG)
    said = or_else(said, OPEN_CLIP)
    model = part(document, "model_cfg")
    if "timm_model_name" in part(model, "vision_cfg"):  # timm's names carry their activation
        return said._replace(quick_gelu=None)
    return said._replace(quick_gelu=bool(model.get("quick_gelu", False)) if model else None)


def sources_of(
    configs: Configs, said: Trained, registry: Callable[[], Source | None]
) -> list[Source]:
    """Return who speaks for weights: files beside them, the command line, the named tag."""
    sources = []
    if configs.open_clip is not None:
        sources.append(Source(OPEN_CLIP_CONFIG, of_open_clip_config(configs.open_clip)))
    if configs.timm is not None:
        sources.append(
            Source(TIMM_CONFIG, of_mapping(part(configs.timm, "pretrained_cfg"), TIMM_CONFIG))
        )
    tag = registry()
    return [*sources, *([tag] if tag else []), Source("the command line", said)]
