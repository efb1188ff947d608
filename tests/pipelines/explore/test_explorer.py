"""What the page is told of a run against the store, the model and the data themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import yaml

from pipelines.explore.opening import open_explorer
from pipelines.explore.search import Filter
from shared.errors import UserError
from shared.imaging.images import parse_reference
from shared.imaging.keys import content_key
from shared.records import Record, Turn, write_records
from shared.targets import TargetStore

pytestmark = pytest.mark.integration


def target_of(run: Path, image: str) -> Any:
    return TargetStore.open(run / "store")[content_key(run / "data" / image)]


def test_the_run_and_a_line_of_the_list(run: Path) -> None:
    explorer = open_explorer(run, run / "evaluation", regions=run / "data" / "regions.json")
    told = explorer.run()
    names = [one["name"] for one in told["rows"]]
    assert names == ["LoRA + greedy", "LoRA + beam", "MEDALIGN + greedy", "MEDALIGN + beam"]
    assert told["pair"] == [1, 3]
    assert (told["items"], told["cluster"], told["kinds"]) == (9, "image", ["closed", "open"])
    assert told["students"] == ["before", "LoRA", "MEDALIGN"]
    weights = sum(file.stat().st_size for file in (run / "base").glob("*.safetensors"))
    assert told["weights"] == weights > 0
    assert told["notes"] == []
    [first, *_] = explorer.items(Filter(), 0)["items"]
    files = sorted((run / "evaluation" / "answers").glob("*.jsonl"))
    answers = {file.stem: json.loads(file.read_text().split("\n")[0]) for file in files}
    assert (first["id"], first["question"]) == ("0-0", "Is the liver here?")
    stems = ["lora-greedy", "lora-beam", "medalign-greedy", "medalign-beam"]
    marks = [answers[stem]["scores"]["closed_accuracy_strict"] for stem in stems]
    assert first["marks"] == marks
    item = explorer.item(0)
    texts = [answers[stem]["prediction"] for stem in stems]
    assert [one["text"] for one in item["answers"]] == texts
    assert item["images"] == ["0.png"]
    explorer.close()


def test_maps_are_the_stores_and_the_students(run: Path) -> None:
    explorer = open_explorer(run, run / "evaluation")
    maps = explorer.maps(0, 0)
    target = target_of(run, "0.png")
    visible = target.coverage > 0
    wanted = np.where(visible, target.attention.astype(np.float64), 0)
    wanted /= wanted.sum()
    assert maps["grid"] == (4, 4)
    assert maps["visible"] == visible.tolist()
    np.testing.assert_allclose(np.array(maps["teacher"]), wanted, atol=5e-7)
    assert set(maps["students"]) == {"LoRA", "MEDALIGN"}  # what evaluate kept
    from safetensors.numpy import load_file

    for name, told in maps["students"].items():
        kept = load_file(run / "evaluation" / "states" / name.lower() / "0-0.safetensors")
        assert set(told["layers"]) == {1, 2}
        assert (told["layer"], told["grid"], told["similarity"]) == (2, (4, 4), False)
        for layer, one in told["layers"].items():
            student = np.where(visible, kept[f"attention.{layer}"].astype(np.float64), 0)
            student /= student.sum()
            np.testing.assert_allclose(one["values"], student, atol=5e-7)
            apart = scipy.special.rel_entr(wanted[visible], student[visible]).sum()
            assert one["divergence"] == pytest.approx(apart, rel=1e-9)
    explorer.close()


def test_similarity_of_every_patch(run: Path) -> None:
    explorer = open_explorer(run, run / "evaluation")
    target = target_of(run, "1.png")
    square = np.eye(16)
    square[np.triu_indices(16, 1)] = target.similarity
    square = np.maximum(square, square.T) + np.minimum(square, square.T) - np.eye(16) * square
    for patch in range(16):
        told = explorer.similarity(3, 0, patch)
        np.testing.assert_allclose(np.array(told["teacher"]), square[patch], atol=5e-7)
        assert told["students"] == {}
    with pytest.raises(UserError, match="patches are 0 to 15, not 16"):
        explorer.similarity(3, 0, 16)
    explorer.close()


def test_a_student_is_asked_on_demand(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.evaluation.loading import load_student
    from pipelines.evaluation.observed import observe
    from pipelines.explore import students

    loads: list[Path] = []

    def counted(folder: Path, *rest: Any) -> Any:
        loads.append(folder)
        return load_student(folder, *rest)

    monkeypatch.setattr(students, "load_student", counted)
    explorer = open_explorer(run, run / "evaluation", device="cpu")
    explorer.maps(3, 0)
    explorer.item(3)
    explorer.items(Filter(turn="verdicts"), 0)
    assert loads == []
    for place in (3, 4, 3):
        assert explorer.ask("MEDALIGN", place) == {"asked": "MEDALIGN"}
    assert loads == [run / "medalign"]
    told = explorer.maps(3, 0)["students"]
    assert set(told) == {"MEDALIGN"}
    assert set(told["MEDALIGN"]["layers"]) == {0, 1, 2, 3}
    image = parse_reference("1.png", run / "data")
    seen = observe(load_student(run / "medalign", "cpu"), "Is the liver here?", [image], [2])
    visible = target_of(run, "1.png").coverage > 0
    values = np.where(visible, seen.attention[2].astype(np.float64), 0)
    shown = told["MEDALIGN"]["layers"][2]["values"]
    np.testing.assert_allclose(shown, values / values.sum(), atol=1e-6)
    tokens = seen.tokens[2].astype(np.float64)
    rows = explorer.similarity(3, 0, 5)["students"]
    cosines = [
        tokens[5] @ one / (np.linalg.norm(tokens[5]) * np.linalg.norm(one)) for one in tokens
    ]
    np.testing.assert_allclose(rows["MEDALIGN"], cosines, atol=1e-6)
    explorer.ask("before", 3)
    assert set(explorer.maps(3, 0)["students"]) == {"before", "MEDALIGN"}
    with pytest.raises(UserError, match="no arm 'PAI'"):
        explorer.ask("PAI", 3)
    explorer.close()


def test_an_image_without_target_and_one_that_is_gone(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run / "data", tmp_path / "data"))
    explorer = open_explorer(run, run / "evaluation", image_root=root)
    maps = explorer.maps(6, 0)  # 2.png is not in the store
    assert maps["teacher"] is None
    assert "not in the store" in maps["notes"][0]
    assert explorer.similarity(6, 0, 3) == {"teacher": None, "students": {}}
    (root / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png cannot be shown: No such file"):
        explorer.picture(3, 0)
    (root / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png cannot be shown"):
        explorer.maps(0, 0)
    explorer.close()


def test_fields_of_the_records(run: Path, tmp_path: Path) -> None:
    explorer = open_explorer(run, run / "evaluation")
    assert explorer.item(1)["fields"] == {}
    state = explorer.fields(False)["state"]
    while state in ("reading", "unread"):
        state = explorer.fields(True)["state"]
    told = explorer.fields(True)
    assert told == {
        "state": "ready",
        "fields": {
            "plane": ["axial", "coronal"],
            "note": [f"number {number}" for number in range(9)],
        },
        "reason": "",
    }
    found = explorer.items(Filter(field="plane", value="axial"), 0)["items"]
    assert [one["place"] for one in found] == [1, 3, 5, 7]
    found = explorer.items(Filter(field="plane", value="axial", kind="open"), 0)["items"]
    assert [one["place"] for one in found] == [1, 7]
    assert explorer.item(1)["fields"] == {"plane": "axial", "note": "number 1"}
    with pytest.raises(UserError, match="no item has plane=sagittal"):
        explorer.items(Filter(field="plane", value="sagittal"), 0)
    explorer.close()


def test_fields_of_another_data_file_are_refused(run: Path, tmp_path: Path) -> None:
    evaluation = Path(shutil.copytree(run / "evaluation", tmp_path / "evaluation"))
    result = json.loads((evaluation / "result.json").read_text())
    data = tmp_path / "test.json"
    data.write_text((run / "data" / "test.json").read_text() + " ")
    result["data"]["file"] = str(data)
    (evaluation / "result.json").write_text(json.dumps(result))
    for message in ("is not the one that was answered", "is not there"):
        explorer = open_explorer(run, evaluation, image_root=run / "data")
        while explorer.fields(True)["state"] == "reading":
            pass
        told = explorer.fields(True)
        assert (told["state"], told["fields"]) == ("failed", {})
        assert message in told["reason"]
        assert explorer.maps(0, 0)["teacher"] is not None  # the rest works
        explorer.close()
        data.unlink(missing_ok=True)


def test_a_store_that_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no targets in"):
        open_explorer(run, run / "evaluation", store=str(run / "store"), teacher="unimed-base")
    moved = Path(shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("store")))
    for arm in ("lora", "medalign"):
        file = moved / arm / "recipe.yaml"
        values = yaml.safe_load(file.read_text())
        values["targets"] = {"store": str(tmp_path / "nowhere")}
        file.write_text(yaml.safe_dump(values))
    explorer = open_explorer(moved, moved / "evaluation")
    assert "no teacher's map and no similarity" in explorer.run()["notes"][0]
    assert explorer.maps(0, 0)["teacher"] is None
    explorer.close()
    explorer = open_explorer(moved, moved / "evaluation", store=str(run / "store"))
    assert explorer.maps(0, 0)["teacher"] is not None
    explorer.close()


def test_reports_several_images_and_text_alone(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    from pipelines.evaluation.run import evaluate

    told = Turn("gpt", "The lungs are clear. No effusion is seen.")
    shown = [("0.png",), ("0.png", "1.png"), ()]
    records = [
        Record(
            str(number),
            images,
            (Turn("human", "<image>\n" * len(images) + "Describe."), told),
            None,
            (),
            {"task": "report"},
        )
        for number, images in enumerate(shown)
    ]
    write_records(tmp_path / "reports.json", records)
    evaluate(run, tmp_path / "reports.json", run / "data", ["greedy"], tmp_path / "out",
             max_new_tokens=3, device="cpu")  # fmt: skip
    explorer = open_explorer(run, tmp_path / "out", device="cpu")
    assert explorer.run()["kinds"] == ["report"]
    assert [one["kind"] for one in explorer.items(Filter(kind="report"), 0)["items"]] == [
        "report"
    ] * 3
    for turn in ("gained", "lost", "right", "wrong", "verdicts"):
        assert explorer.items(Filter(turn=turn, a=0, b=1), 0)["items"] == []
    explorer.ask("LoRA", 1)
    rows = [explorer.maps(1, number)["students"]["LoRA"] for number in (0, 1)]
    assert [len(one["layers"][2]["values"]) for one in rows] == [16, 16]
    teachers = [explorer.maps(1, number)["teacher"] for number in (0, 1)]
    assert teachers[0] == explorer.maps(0, 0)["teacher"] != teachers[1]
    with pytest.raises(UserError, match="shows 2 images; there is none 2"):
        explorer.maps(1, 2)
    with pytest.raises(UserError, match="shows 0 images"):
        explorer.picture(2, 0)
    with pytest.raises(UserError, match="shows no image"):
        explorer.ask("LoRA", 2)
    with pytest.raises(UserError, match="numbered 0 to 2, not 3"):
        explorer.item(3)
    explorer.close()


def test_a_base_model_without_recipe(run: Path, tmp_path: Path) -> None:
    from pipelines.evaluation.run import evaluate

    base = Path(shutil.copytree(run / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"prompt_template": "vicuna_v1"}))
    evaluate(base, run / "data" / "test.json", run / "data", ["greedy"], max_new_tokens=3,
             device="cpu")  # fmt: skip
    explorer = open_explorer(base, base / "evaluation", store=str(run / "store"), device="cpu")
    told = explorer.run()
    assert (told["students"], told["pair"]) == (["base"], [0, 0])
    explorer.ask("base", 0)
    maps = explorer.maps(0, 0)
    assert maps["students"]["base"]["layer"] == 2
    assert maps["teacher"] is not None
    explorer.close()


def test_a_named_model(run: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(run, tmp_path / "named", ignore=shutil.ignore_patterns("store")))
    for arm in ("lora", "medalign"):
        file = named / arm / "recipe.yaml"
        values = yaml.safe_load(file.read_text())
        values["model"] = {"name": "llava-med-1.5", "path": str(run / "base")}
        file.write_text(yaml.safe_dump(values))
    explorer = open_explorer(named, named / "evaluation", device="cpu")
    weights = sum(file.stat().st_size for file in (run / "base").glob("*.safetensors"))
    assert explorer.run()["weights"] == weights
    explorer.ask("MEDALIGN", 0)
    assert set(explorer.maps(0, 0)["students"]["MEDALIGN"]["layers"]) == {0, 1, 2, 3}
    explorer.close()


def test_a_run_whose_adapters_are_gone(run: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    shutil.copytree(run / "evaluation", only / "evaluation")
    explorer = open_explorer(only, only / "evaluation", store=str(run / "store"))
    told = explorer.run()
    assert told["students"] == []
    assert "no model of this run can be asked" in told["notes"][0]
    assert set(explorer.maps(0, 0)["students"]) == set()
    assert explorer.maps(0, 0)["teacher"] is not None
    explorer.close()
