"""Stores whose targets are wrong on purpose: what a claim about the teacher has to beat.

If another image's targets, or the mean of all, help a student as much as the right ones do, then
what helped is not what the teacher saw in the image.

    shuffled   each image has the targets of another one, of another patient where `data` tells
    mean       each image has the mean target of the images of `data` (of all without it)

The geometry stays: an image keeps its own coverage. The new namespace's teacher is called after the
control (`dinov2-small-shuffled`), so that no run takes one for the other.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import track, warn
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.records import Record, image_root_of, load_records
from shared.targets import Identity, TargetStore, TargetWriter
from shared.targets.numbers.arrays import Arrays
from shared.vocabulary import Control as ControlKind

PATIENT = ("patient", "patient_id", "subject", "subject_id")


class Control(NamedTuple):
    """What was written: into which namespace, for how many images of how many patients."""

    namespace: str
    images: int
    patients: int


def make_control(
    store: str | Path,
    to: str | Path,
    kind: ControlKind,
    *,
    data: Path | None = None,
    image_root: Path | None = None,
    teacher: str | None = None,
    fingerprint: str | None = None,
    seed: int = 0,
) -> Control:
    """Write the control of a store's targets into the store `to`.

    Parameters
    ----------
    data, image_root
        A data set file and the folder of its images: whose patients `shuffled` keeps apart, over
        whose images `mean` is taken.
    teacher, fingerprint
        Which namespace, where the store holds several.
    seed
        Of `shuffled`.

    Raises
    ------
    UserError
        The store is not of the encoding `matrix`, holds one patient only, or lacks an image of
        `data`; or some records of `data` name their patient and others do not.
    """
    opened = TargetStore.open(store, teacher, fingerprint)
    if opened.identity.encoding != "matrix":
        raise UserError(
            f"{opened.namespace.name} is of the encoding {opened.identity.encoding}; controls are "
            "made of `matrix` stores (cache build --encoding matrix)"
        )
    keys = list(opened.keys())
    patients = _patients(data, image_root, keys)
    unknown = sum(key not in patients for key in keys)
    if unknown and kind == "shuffled":
        warn(
            f"{data} shows {len(keys) - unknown} of {len(keys)} images: each other one is taken "
            "for a patient of its own"
        )
    identity = _identity(opened.identity, kind, seed)
    with TargetWriter(to, identity, {"control": f"{kind} of {opened.namespace.name}"}) as writer:
        mean = _mean(opened, [key for key in keys if key in patients]) if kind == "mean" else None
        source = shuffled(keys, patients, seed) if kind == "shuffled" else {}
        for key in track(keys, len(keys), kind, "images"):
            wrong = opened[source[key]].arrays() if mean is None else mean
            writer.add(key, {**wrong, "coverage": opened[key].coverage})
    return Control(identity.namespace(), len(keys), len(set(patients.values())))


def shuffled(keys: list[bytes], patients: dict[bytes, str], seed: int) -> dict[bytes, bytes]:
    """Return for each image another patient's image; every image is used once.

    Images in an order of patients, moved on by the largest patient's number of images: none meets
    its own patient.

    Raises
    ------
    UserError
        One patient has more than half of the images.
    """
    groups: dict[str, list[bytes]] = defaultdict(list)
    for key in keys:
        groups[patients.get(key, key.hex())].append(key)
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    row = [key for name in order for key in groups[name]]
    step = max(map(len, groups.values()))
    if 2 * step > len(row):
        raise UserError(
            f"one patient has {step} of {len(row)} images: no other patient's targets for each"
        )
    return {key: row[(place + step) % len(row)] for place, key in enumerate(row)}


def _patients(data: Path | None, image_root: Path | None, keys: list[bytes]) -> dict[bytes, str]:
    """Return the patient of each image that `data` shows; without it each image is its own."""
    if data is None:
        return {key: key.hex() for key in keys}
    records = load_records(data)
    field = _patient_field(data, records)
    root, held = image_root_of(data, image_root), set(keys)
    found: dict[bytes, str] = {}
    for record in records:
        for reference in record.references(root):
            key = content_key(reference.path, reference.part)
            if key not in held:
                raise UserError(f"{reference} of {data} has no target in the store; build it first")
            found[key] = str(record.extra[field]) if field else key.hex()
    return found


def _patient_field(data: Path, records: Sequence[Record]) -> str | None:
    """Return the field of the patient; None where no record has one."""
    for name in PATIENT:
        without = [one.id for one in records if one.extra.get(name) in (None, "")]
        if len(without) == len(records):
            continue
        if without:
            raise UserError(
                f"{len(without)} of {len(records)} records of {data} have no `{name}`, the first: "
                f"{without[0]}; whose patient is unknown cannot be kept apart: name them all"
            )
        return name
    return None


def _mean(opened: TargetStore, keys: list[bytes]) -> Arrays:
    """Mean of similarity and, where the store has it, of attention, each image's of sum 1."""
    similarity: NDArray[np.float64] | None = None
    attention: NDArray[np.float64] | None = None
    for key in track(keys, len(keys), "mean", "images"):
        one = opened[key]
        own = one.similarity.astype(np.float64)
        similarity = own if similarity is None else similarity + own
        if one.attention is not None:
            share = one.attention.astype(np.float64)
            share /= share.sum()
            attention = share if attention is None else attention + share
    if similarity is None:
        raise UserError("no image to take the mean of")
    mean: dict[str, NDArray[np.generic]] = {
        "similarity": (similarity / len(keys)).astype(np.float16)
    }
    if attention is not None:
        mean["attention"] = (attention / len(keys)).astype(np.float32)
    return mean


def _identity(identity: Identity, kind: ControlKind, seed: int) -> Identity:
    made_of = f"{kind} {seed if kind == 'shuffled' else ''} of {identity.fingerprint()}"
    changed = {
        "teacher": f"{identity.teacher}-{kind}",
        "weights": hashlib.sha256(made_of.encode()).hexdigest(),
    }
    return identity.without_query().model_copy(update=changed)
