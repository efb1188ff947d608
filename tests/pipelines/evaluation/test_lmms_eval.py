"""The model `medalign` of lmms-eval, on a stand-in for its base class, and on itself if it is here.

The stand-in has what `lmms_eval/api/model.py` and the evaluator of version 0.7 have: the abstract
methods, `task_dict`, and requests whose `args` are (context, generation arguments, doc_to_visual,
doc_id, task, split).
"""

import abc
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from pipelines.decoding.methods import NAMES
from pipelines.evaluation.files import FileOptions, score_files
from pipelines.evaluation.generate import generate_answer
from shared.errors import UserError
from shared.records import load_records
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
TASK = ROOT / "pipelines" / "evaluation" / "lmms_eval" / "task"
MODEL = "pipelines.evaluation.lmms_eval.model"


class Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = None
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


class Manifest(SimpleNamespace):
    pass


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> type:
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    }
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *contents):
        module = ModuleType(name)
        vars(module).update(contents.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODEL, raising=False)
    found: type = importlib.import_module(MODEL).MedAlign
    monkeypatch.delitem(sys.modules, MODEL, raising=False)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), images=2)


def requests(run: Path, model: Any, **given: Any) -> list[Any]:
    """One request a record, as the evaluator makes them."""
    data = run / "data"
    documents = load_records(data / "test.json")
    model.task_dict["medalign"] = {"test": documents}

    def visual(record: Any) -> list[Image.Image]:
        return [Image.open(data / image).convert("RGB") for image in record.images]

    return [
        SimpleNamespace(args=(one.question, dict(given), visual, place, "medalign", "test"))
        for place, one in enumerate(documents)
    ]


@pytest.mark.parametrize("method", NAMES)
def test_answers_are_those_of_generate(run: Path, model_class: type, method: str) -> None:
    model = model_class(run=str(run), decode=method, preset="equal", batch_size="4")
    asked = requests(run, model, max_new_tokens=4, until=["\n\n"])
    answers = model.generate_until(asked)
    if method in ("nucleus", "vcd"):  # what they draw follows from the item's name
        other = model_class(run=str(run), decode=method, preset="equal", batch_size=1)
        assert other.generate_until(requests(run, other, max_new_tokens=4)) == answers
        return
    for one, record in zip(answers[:2], load_records(run / "data" / "test.json"), strict=False):
        expected = generate_answer(
            run,
            str(run / "data" / record.images[0]),
            record.question,
            method=method,
            preset="equal",
            max_new_tokens=4,
        )
        assert one == expected.partition("\n\n")[0].strip()


def test_limits_and_marks_are_the_tasks(run: Path, model_class: type) -> None:
    model = model_class(run=str(run), decode="greedy", batch_size=3, max_new_tokens=5)
    long = model.generate_until(requests(run, model))
    short = model.generate_until(requests(run, model, max_new_tokens=1))
    assert long != short
    mark = long[0][len(long[0]) // 2]
    cut = model.generate_until(requests(run, model, until=mark))
    assert cut[0] == long[0].partition(mark)[0].strip()
    mixed = requests(run, model)
    mixed[1].args[1]["max_new_tokens"] = 1
    assert model.generate_until(mixed)[1] == short[1]


def test_settings_stand_in_model_args(run: Path, model_class: type) -> None:
    """As lmms-eval parses them: parted by commas, then at the first `=`."""
    line = f"run={run},decode=vcd@alpha=0;temperature=0,seed=3"
    model = model_class(**dict(one.split("=", 1) for one in line.split(",")))
    assert model.decoding.settings.alpha == 0
    with pytest.raises(UserError, match="knows no model_args dtype"):
        model_class(run=str(run), dtype="auto")
    with pytest.raises(UserError, match="one decoding method"):
        model_class(run=str(run), decode="all")
    with pytest.raises(NotImplementedError, match="generate_until alone"):
        model.loglikelihood([])


def test_the_entry_point_names_the_model(model_class: type) -> None:
    import tomllib

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [target] = document["project"]["entry-points"]["lmms_eval.models"].values()
    module, _, name = target.partition(":")
    found = getattr(importlib.import_module(module), name)()
    assert found.model_id == "medalign"
    assert found.simple_class_path == f"{MODEL}.{model_class.__name__}"


def task_functions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("medalign_task", TASK / "medalign_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_asks_what_the_records_ask(
    run: Path, model_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the task through the model to samples as lmms-eval writes them, read by `score`."""
    data = run / "data" / "test.json"
    monkeypatch.setenv("MEDALIGN_IMAGE_ROOT", str(data.parent))
    task = task_functions()
    rows = [row | {"options": None} for row in json.loads(data.read_text())]
    model = model_class(run=str(run), decode="greedy")
    model.task_dict["medalign"] = {"test": rows}
    asked = [
        SimpleNamespace(
            args=(
                task.doc_to_text(row),
                {"max_new_tokens": 6},
                task.doc_to_visual,
                place,
                "medalign",
                "test",
            )
        )
        for place, row in enumerate(rows)
    ]
    samples = [
        {
            "doc_id": place,
            "target": task.doc_to_target(row),
            "filtered_resps": text,
            "doc_hash": "x",
            "input": task.doc_to_text(row),
            **task.process_results(row, [text]),
        }
        for place, (row, text) in enumerate(zip(rows, model.generate_until(asked), strict=True))
    ]
    file = tmp_path / "20260101_samples_medalign.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in samples))
    result, _ = score_files([file], data, FileOptions())
    [scored] = result["rows"]
    assert scored["joined"] == "place"
    recalls = [one["open_recall"] for one in samples if "open_recall" in one]
    assert scored["scores"]["open_recall"]["value"] == pytest.approx(sum(recalls) / len(recalls))


def test_the_tasks_functions_and_metrics_are_there() -> None:
    text = (TASK / "medalign.yaml").read_text()
    task = task_functions()
    for module, name in re.findall(r"!function (\w+)\.(\w+)", text):
        assert module == "medalign_task"
        assert callable(getattr(task, name))
    document = yaml.safe_load(re.sub(r"!function", "", text))
    listed = {one["metric"] for one in document["metric_list"]}
    row = {"id": "1", "question": "Is it?", "answer": "yes", "answer_type": "CLOSED"}
    assert set(task.process_results(row, ["yes"])) <= listed
    assert set(task.process_results({**row, "answer_type": "OPEN"}, ["yes"])) <= listed


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="needs lmms-eval")
def test_under_lmms_eval_itself(run: Path, tmp_path: Path) -> None:
    """Its own command, model and task found as in docs/evaluation.md: the answers of `evaluate`."""
    data = run / "data"
    for file in TASK.iterdir():
        shutil.copy(file, data)
    adapter = run / "medalign"
    words = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "medalign",
        "--tasks",
        "medalign_test_set",
    ]
    words += ["--model_args", f"run={adapter},decode=greedy", "--include_path", str(data)]
    words += ["--log_samples", "--output_path", str(tmp_path / "logs")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = list((tmp_path / "logs").rglob("*_samples_medalign_test_set.jsonl"))
    assert len(found) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    [samples] = found
    lines = samples.read_text(encoding="utf-8").strip().split("\n")
    rows = {row["doc_id"]: row for row in map(json.loads, lines)}
    for place, record in enumerate(load_records(data / "test.json")):
        images = [str(data / image) for image in record.images]
        answer = generate_answer(adapter, images, record.question, method="greedy")
        assert rows[place]["filtered_resps"] in (answer, [answer])  # by version
    score_files([samples], data / "test.json", FileOptions())
