"""A run to look into, its store, regions and evaluation; and evaluations written by hand."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipelines.evaluation.result import AnswerLine, write_answers, write_result
from pipelines.explore.opening import open_explorer
from pipelines.explore.server import Server
from tests.fixtures.results import answered, row, settings
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store

IMAGES = ["0.png", "1.png", "2.png"]


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms over three images of 40 x 30 pixels, two of them in the store of 4 x 4 patches.

    Evaluated by two decodings; attention of layers 1 and 2 is kept for the first item. Two regions
    of the first image: a box and a mask.
    """
    from pipelines.evaluation.run import evaluate

    folder = write_run(tmp_path_factory.mktemp("explore") / "run", images=3)
    write_store(folder / "store", folder / "data", IMAGES[:2], 4)
    for arm in ("lora", "medalign"):
        file = folder / arm / "recipe.yaml"
        values = yaml.safe_load(file.read_text()) | {"targets": {"store": str(folder / "store")}}
        file.write_text(yaml.safe_dump(values))
    data = folder / "data" / "test.json"
    records = json.loads(data.read_text())
    for number, record in enumerate(records):
        record |= {"plane": "axial" if number % 2 else "coronal", "note": f"number {number}"}
    data.write_text(json.dumps(records))
    mask = Image.new("L", (40, 30), 0)
    mask.paste(9, (20, 10, 30, 20))
    mask.save(folder / "data" / "mask.png")
    regions = [
        {"image": "0.png", "label": "lung", "boxes": [[4, 6, 12, 8]]},
        {"image": "0.png", "label": "heart", "masks": ["mask.png"]},
    ]
    (folder / "data" / "regions.json").write_text(json.dumps({"records": regions}))
    evaluate(
        folder, data, folder / "data", ["greedy", "beam"], max_new_tokens=3, device="cpu",
        save_layers=[1, 2], save_items=["0-0"],
    )  # fmt: skip
    return folder


Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write an evaluation by hand: the answers of each row, as (text, scores) an item."""

    def write(
        rows: dict[str, Sequence[tuple[str, dict[str, float]]]],
        images: Sequence[list[str]] = (),
        clusters: Sequence[str] = (),
        questions: Sequence[str] = (),
        **data: Any,
    ) -> Path:
        folder = tmp_path / "evaluation"
        results = []
        for name, answers in rows.items():
            lines: list[AnswerLine] = [
                {
                    "id": f"id {place}",
                    "images": images[place] if images else [],
                    "cluster": clusters[place] if clusters else str(place),
                    "question": questions[place] if questions else f"question {place}",
                    "reference": "yes",
                    "prediction": text,
                    "scores": scores,
                }
                for place, (text, scores) in enumerate(answers)
            ]
            write_answers(folder, name, lines)
            arm, _, method = name.partition(" + ")
            names = {score for one in lines for score in one["scores"]}
            results.append(row(arm, method, dict.fromkeys(names)))
        about = answered(items=len(lines), image_root=str(tmp_path / "images"), **data)
        result: Any = {
            "schema": 3, "rows": results, "comparisons": [], "identical_outputs": [], "power": {},
            "controls": None, "question_only": None, "by": [], "settings": settings(),
            "data": about,
        }  # fmt: skip
        write_result(folder, result)
        return folder

    return write


@pytest.fixture
def served() -> Iterator[Callable[..., Server]]:
    """Serve a run until the test ends."""
    servers: list[Server] = []

    def serve(run: Path, evaluation: Path | None = None, **options: Any) -> Server:
        server = Server(open_explorer(run, evaluation or run / "evaluation", **options))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
        server.explorer.close()
