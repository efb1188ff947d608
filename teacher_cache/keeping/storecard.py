"""The card of a store that is carried elsewhere: what it holds, whose licence binds it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from shared.console import size
from shared.errors import UserError
from shared.files import refused_as
from teacher_cache.keeping.info import Description, asked_line

CARD = "README.md"
HEAD, AUDITED = "# Targets of MedAlign", "Audited on the regions of"  # by which a card is known


class Score(BaseModel):
    """A mean over `n` images of `patients` patients, with its interval."""

    value: float
    interval: tuple[float, float]
    n: int
    patients: int


class Audited(BaseModel):
    """What an audit says of one namespace: row, score, value."""

    rows: dict[str, dict[str, Score]]


class Audit(BaseModel):
    """What `cache audit --json` prints, as far as a card shows it."""

    regions: str
    teachers: dict[str, Audited]


def read_audit(path: Path, namespaces: Sequence[str]) -> Audit:
    """Read what `cache audit --json` printed of one of these namespaces at least.

    Raises
    ------
    UserError
        The file cannot be read, is no audit, or is one of other namespaces.
    """
    with refused_as(f"cannot read {path}"):
        data = path.read_bytes()
    try:
        audit = Audit.model_validate(json.loads(data))
    except (ValueError, ValidationError):
        raise UserError(
            f"{path} is no audit: `cache audit --store S --regions R --json > FILE` writes one"
        ) from None
    if not set(namespaces) & audit.teachers.keys():
        raise UserError(
            f"{path} audits {', '.join(audit.teachers) or 'nothing'}, and none of "
            f"{', '.join(namespaces)}: audit this store"
        )
    return audit


def card(described: Sequence[Description], audit: Audit | None = None) -> str:
    """Write the card of these namespaces as Markdown with the hub's front matter."""
    lines = [
        "---",
        "license: other",
        "license_name: that-of-the-teacher-below",
        "pretty_name: MedAlign targets",
        "tags: [medalign, distillation, medical]",
        "---",
        "",
        HEAD,
        "",
        "What a medical image encoder says of images: which patches are alike, and where it looks.",
        "Images are named by the sha256 of their bytes: no image and no path is in here. Yet",
        "targets of patient images are derived data: keep them under the agreement of the images.",
        "",
        "Research only, **not for clinical use**.",
        "",
        "```bash",
        "cache pull PLACE --store targets",
        "cache verify --store targets",
        "```",
    ]
    for one in described:
        lines += ["", *_namespace(one, audit.teachers.get(one["namespace"]) if audit else None)]
    if audit is not None:
        lines += ["", f"{AUDITED} `{Path(audit.regions).name}`."]
    return "\n".join(lines) + "\n"


def _namespace(one: Description, audited: Audited | None) -> Iterator[str]:
    identity, provenance = one["identity"], one["provenance"]
    preprocessing = identity["preprocessing"]
    grid = "x".join(str(side) for side in identity["grid"])
    tolerance = "" if identity["tolerance"] is None else f", tolerance {identity['tolerance']}"
    software = provenance.get("software")
    made = str(provenance.get("created", "not recorded"))
    if isinstance(software, Mapping) and "medalign" in software:
        made += f", medalign {software['medalign']}"
    # What no teacher here made has a digest of where it came from in that place.
    maps = identity["encoding"] == "maps"
    elsewhere = maps or {"imported", "control"} & provenance.keys()
    digest = "digest in the place of its weights" if elsewhere else "sha256 of its weights"
    rotation = f", rotation {identity['rotation']}" if "rotation" in identity else ""
    asked = asked_line(one)
    rows = {
        "teacher": f"{one['teacher']} ({identity['architecture']})",
        "licence of its weights": str(provenance.get("licence", "not recorded")),
        digest: identity["weights"],
        "fingerprint": one["fingerprint"],
        "geometry": identity["geometry"],
        "grid": f"{grid} patches",
        "encoding": f"{identity['encoding']} {identity['precision']}{tolerance}{rotation}",
        "features": f"{identity['features']}, computed in {identity['dtype']}",
        "pixels of the teacher": f"{preprocessing['size']}, {preprocessing['interpolation']}",
        **({"can be asked in words": asked} if asked else {}),
        "definition of the targets": str(identity["definition"]),
        "format of the store": str(identity["format"]),
        "maps, one a question"
        if maps
        else "images": f"{one['records']} in {one['segments']} segments, {size(one['bytes'])}",
        "images left out": str(one["quarantined"]),
        "made": made,
    }
    if "imported" in provenance:
        rows["imported"] = str(provenance["imported"])
    if "control" in provenance:
        rows["control, wrong on purpose"] = str(provenance["control"])
    yield f"## {one['namespace']}"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    if audited is None:
        yield "| audit | none is given |"
        return
    yield ""
    yield "| audit: row | score | mean [95% interval] | images | patients |"
    yield "|---|---|---|---|---|"
    for row, scores in audited.rows.items():
        for score, value in scores.items():
            low, high = value.interval
            interval = f"{value.value:.4f} [{low:.4f}, {high:.4f}]"
            yield f"| {_cell(row)} | {score} | {interval} | {value.n} | {value.patients} |"


def _cell(text: str) -> str:
    """Keep a text in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
