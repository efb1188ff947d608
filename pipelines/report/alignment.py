"""What a page says of a run's alignment, where `medalign alignment` has measured it."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from pipelines.regions.experts import CHANCE
from pipelines.regions.measuring import BEFORE, Alignment, read_alignment
from pipelines.regions.scoring import Test, Value
from pipelines.regions.table import TITLES
from pipelines.statistics.intervals import MIN_CLUSTERS

ATTENTION = Path("figures") / "attention.png"  # where `medalign figures attention` writes it
SAID = {  # what is said in words, with how many digits
    "loss_vis": ("L_vis", 4),
    "loss_att": ("L_att", 4),
    "similarity": ("Correlation of its similarities with the expert's", 2),
}
CONTROLS = ("teacher", "prior", CHANCE)


class AlignmentRow(TypedDict):
    """One score: its name, its text in each column (nothing without a value), and the counts."""

    title: str
    cells: list[str]
    n: int
    patients: int


class FurtherTable(TypedDict):
    """Further scores, of layers or of exchanged sides, with their tests."""

    heading: str
    note: str
    columns: list[str]
    scores: list[AlignmentRow]
    tests: list[Test]
    test_titles: Mapping[str, str]


class AlignmentPart(TypedDict):
    """The part of a page; `measured` is false where nothing was, and `picture` a PNG as base64."""

    measured: bool
    columns: list[str]
    scores: list[AlignmentRow]
    tests: list[Test]
    test_titles: Mapping[str, str]
    further: list[FurtherTable]
    before_after: list[str]
    picture: str | None


def alignment_part(run: Path) -> AlignmentPart:
    """Read `alignment.json` and the attention figure of a run; empty where they are not there."""
    found = read_alignment(run)
    picture = run / ATTENTION
    shown = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else None
    part: AlignmentPart = {
        "measured": found is not None,
        "columns": [],
        "scores": [],
        "tests": [],
        "test_titles": TITLES,
        "further": [],
        "before_after": [],
        "picture": shown,
    }
    if found is not None:
        part["columns"] = _columns(found)
        part["scores"] = _rows(found["rows"], part["columns"], TITLES)
        part["further"] = _further(found)
        part["tests"] = [one for one in found["tests"] if _tells(one, found["arms"])]
        part["before_after"] = _sentences(found)
    return part


def _columns(found: Alignment) -> list[str]:
    return [name for name in (BEFORE, *found["arms"], *CONTROLS) if name in found["rows"]]


def _further(found: Alignment) -> list[FurtherTable]:
    """Tables of further layers and of exchanged sides, where `medalign alignment` measured them."""
    tables: list[FurtherTable] = []
    layered, sides = found.get("by_layer"), found.get("sides")
    if layered is not None:
        titles = {str(layer): f"layer {layer}" for layer in layered["layers"]}
        note = (
            "The share of patches whose nearest neighbour in another unit's image is of the same "
            "region, of what enters each decoder layer."
        )
        heading = "Regions told apart, layer by layer"
        tables.append(_table(heading, note, titles, layered["rows"], layered["tests"]))
    if sides is not None:
        note = (
            f"{sides['images']} questions that name a side, and the same ones with left and right "
            "exchanged, scored on the same region: attention that follows the words leaves it."
        )
        heading = "Left and right exchanged in the question"
        tables.append(_table(heading, note, TITLES, sides["rows"], sides["tests"]))
    return tables


def _table(
    heading: str,
    note: str,
    titles: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Value]],
    tests: list[Test],
) -> FurtherTable:
    return {
        "heading": heading,
        "note": note,
        "columns": list(rows),
        "scores": _rows(rows, list(rows), titles),
        "tests": [one for one in tests if one["patients"] >= MIN_CLUSTERS],
        "test_titles": titles,
    }


def _rows(
    rows: Mapping[str, Mapping[str, Value]], columns: list[str], titles: Mapping[str, str]
) -> list[AlignmentRow]:
    """Return the scores that any of the columns has."""
    found: list[AlignmentRow] = []
    for score, title in titles.items():
        values = [rows[name].get(score) for name in columns]
        first = next((value for value in values if value is not None), None)
        if first is None:
            continue
        cells = [_cell(value, name) for value, name in zip(values, columns, strict=True)]
        found.append(
            {"title": title, "cells": cells, "n": first["n"], "patients": first["patients"]}
        )
    return found


def _cell(value: Value | None, column: str) -> str:
    if value is None:
        return ""
    low, high = value["interval"]
    # Chance is computed, not observed; and few units say nothing of others.
    bare = column == CHANCE or value["patients"] < MIN_CLUSTERS
    return f"{value['value']:.3f}" + ("" if bare else f" [{low:.3f}, {high:.3f}]")


def _tells(test: Test, arms: list[str]) -> bool:
    """Whether a test is of the page: an arm against before, the first arm, or the prior."""
    told = test["a"] in arms and test["b"] in (BEFORE, arms[0], "prior")
    return told and test["patients"] >= MIN_CLUSTERS


def _sentences(found: Alignment) -> list[str]:
    """Say in words what the last arm's losses and grounding did, and whether tests show it."""
    last = found["arms"][-1]
    said = []
    for score, (name, digits) in SAID.items():
        if score in found["rows"][last]:
            before, after = (found["rows"][row][score]["value"] for row in (BEFORE, last))
            change = f"{before:.{digits}f} before, {after:.{digits}f} after"
            said.append(f"{name}, {last}: {change}{_shown(found, last, score)}.")
    if "pointing" in found["rows"][last]:
        before, after = (found["rows"][row]["pointing"]["value"] for row in (BEFORE, last))
        prior = found["rows"].get("prior", {}).get("pointing")
        beside = "" if prior is None else f"; the prior hits in {100 * prior['value']:.0f}%"
        said.append(
            f"The question's attention hits the region in {100 * before:.0f}% of images before, "
            f"{100 * after:.0f}% after{_shown(found, last, 'pointing')}{beside}."
        )
    return said


def _shown(found: Alignment, arm: str, score: str) -> str:
    """Say what the test of an arm against the start found."""
    test = next(
        one for one in found["tests"] if (one["a"], one["b"], one["score"]) == (arm, BEFORE, score)
    )
    if test["patients"] < MIN_CLUSTERS:
        return f" ({test['patients']} units, too few for a test)"
    return f" (p = {test['p_holm']:.3f})"
