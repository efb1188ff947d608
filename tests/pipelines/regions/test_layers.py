"""Separability by layer: of the model's own hidden states, by a nearest-neighbour search."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.evaluation.loading import load_student
from pipelines.evaluation.observed import observe
from pipelines.regions.held import held_out
from pipelines.regions.layers import parse_layers
from pipelines.regions.measuring import BEFORE, measure
from pipelines.regions.reading import read_regions
from pipelines.regions.table import lines_of
from shared.errors import UserError
from shared.targets import TargetStore
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store
from tests.fixtures.students import GRID, LAYERS

pytestmark = pytest.mark.integration
IMAGES = 10
EVERY = list(range(LAYERS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two arms; two labels in each image, which is 40 x 30 on a square of 40."""
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    names = [f"{number}.png" for number in range(IMAGES)]
    write_store(folder / "store", folder / "data", names)
    rows = [
        {"image": name, "patient": f"p{number // 2}", "label": label, "boxes": [[x, 3, 16, 22]]}
        for number, name in enumerate(names)
        for label, x in (("liver", 1), ("left lung", 22))
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Any:
    return measure(
        run, store=str(run / "store"), regions=run / "regions.json", layers=[3, *EVERY[:3]]
    )


def hidden(student: Any, held: Any) -> list[list[np.ndarray]]:
    """What enters each layer on the image's patches, of each image: transformers' own record."""
    found = []
    for one in held:
        inputs = student.processor.encode(one.record.question, [one.reference])
        with torch.no_grad():
            states = student.model(**inputs, output_hidden_states=True).hidden_states
        columns = inputs["input_ids"][0] == student.processor.image_token_id
        found.append([state[0, columns].numpy() for state in states])
    return found


def nearest(vectors: list[np.ndarray], labels: list[str], patients: list[str]) -> list[bool]:
    """Whether the nearest by cosine among other patients' vectors has the label, one by one."""
    hits = []
    for vector, label, patient in zip(vectors, labels, patients, strict=True):
        others = [
            (float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)), its)
            for other, its, whose in zip(vectors, labels, patients, strict=True)
            if whose != patient
        ]
        hits.append(max(others)[1] == label)
    return hits


def test_each_layers_score_is_that_of_the_hidden_states(run: Path, found: Any) -> None:
    """Of LoRA alone, which has no W: transformers records the states before the hooks."""
    student = load_student(run / "lora")
    store, regions = TargetStore.open(run / "store"), read_regions(run / "regions.json")
    held = held_out(run / "data" / "test.json", None, store, regions)
    states = hidden(student, held)
    # The middles of a 4 x 4 grid's patches on the square of 40: 5, 15, 25, 35; padding is 5 high.
    middles = [(10 * (n % GRID) + 5, 10 * (n // GRID) + 5) for n in range(GRID * GRID)]
    inside = {
        label: [x0 <= x < x0 + 16 and 8 <= y < 30 for x, y in middles]
        for label, x0 in (("liver", 1), ("left lung", 22))
    }
    for layer in EVERY:
        vectors, labels, patients = [], [], []
        for one, own in zip(held, states, strict=True):
            for label, patches in inside.items():
                vectors.append(own[layer][patches].astype(np.float64).mean(axis=0))
                labels.append(label)
                patients.append(one.patient)
        hits = nearest(vectors, labels, patients)
        value = found["by_layer"]["rows"]["LoRA"][str(layer)]
        assert value["value"] == pytest.approx(np.mean(hits))
        assert (value["n"], value["patients"]) == (IMAGES, IMAGES // 2)
        low, high = value["interval"]
        assert 0 <= low <= value["value"] <= high <= 1


def test_layer_l_is_the_run_own_score_and_chance_knows_the_labels_alone(found: Any) -> None:
    layered = found["by_layer"]
    assert layered["layers"] == [3, 0, 1, 2]
    for row in (BEFORE, "LoRA", "MEDALIGN"):
        assert layered["rows"][row]["2"] == found["rows"][row]["separable"]
        assert all(-1 <= one <= 1 for one in layered["silhouette"][row].values())
    assert {one["value"] for one in layered["rows"]["chance"].values()} == {0.5}
    pairs = {(one["a"], one["b"], one["score"]) for one in layered["tests"]}
    assert len(pairs) == len(layered["tests"]) == 3 * LAYERS
    assert ("MEDALIGN", BEFORE, "3") in pairs


def test_further_layers_change_no_other_number(run: Path, found: Any) -> None:
    alone = measure(run, store=str(run / "store"), regions=run / "regions.json")
    assert "by_layer" not in alone
    assert {name: value for name, value in found.items() if name in alone} == alone
    lines = list(lines_of(found))
    assert max(map(len, lines)) <= 80
    assert any("told apart in layer 3" in line for line in lines)


def test_a_pass_that_ends_early_sees_what_the_whole_one_sees(run: Path) -> None:
    student = load_student(run / "lora", named=False)
    held = held_out(run / "data" / "test.json", None, TargetStore.open(run / "store"), {})[:1]
    [states] = hidden(student, held)
    for layer in EVERY:
        seen = observe(student, held[0].record.question, [held[0].reference], [layer])
        assert np.array_equal(seen.tokens[layer], states[layer])
    every = observe(student, held[0].record.question, [held[0].reference], EVERY)
    assert np.array_equal(every.attention[0], observe(
        student, held[0].record.question, [held[0].reference], [0]
    ).attention[0])  # fmt: skip
    assert len(student.model.get_decoder().layers) == LAYERS
    assert all(np.array_equal(a, b) for a, b in zip(states, hidden(student, held)[0], strict=True))


@pytest.mark.parametrize("text", ["", "4,x", "-1", "2.5", ","])
def test_layers_are_numbers_with_commas(text: str) -> None:
    with pytest.raises(UserError, match="write decoder layers, joined by commas"):
        parse_layers(text)
    assert parse_layers("4, 8,4") == [4, 8]
    assert parse_layers(None) is None


def test_a_layer_that_the_model_lacks_is_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"decoder layers 0\.\.3, not all of 2, 7"):
        measure(run, store=str(run / "store"), regions=run / "regions.json", layers=[7])
