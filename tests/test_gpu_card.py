"""The card's figures on a CPU at small sizes, the page made from them, the wheels' list."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu_card, gpu_page, gpu_wheels

CARD = {
    "card": "A card",
    "small": False,
    "date": "2026-11-27",
    "torch": "2.14.1",
    "transformers": "5.23.0",
    "figures": {"build_images_per_second": 999.0, "build_over_bare": 0.98},
}


def test_docs_gpu_is_what_the_cards_give() -> None:
    text = gpu_page.PAGE.read_text("utf-8")
    assert gpu_page.page_with(text, gpu_page.cards_in(gpu_page.CARDS)) == text


def test_a_missed_goal_and_an_absent_figure_are_told(tmp_path: Path) -> None:
    (tmp_path / "a-card.json").write_text(json.dumps(CARD))
    (tmp_path / "cpu.json").write_text(json.dumps(CARD | {"small": True}))
    rows = gpu_page.table(gpu_page.cards_in(tmp_path)).split("\n")
    assert rows[0] == "| figure | goal | A card |"
    assert rows[2].endswith("| >= 1,000 | 999 (missed) |")
    assert rows[3].endswith("| >= 0.97 | 0.980 |")
    assert rows[4].endswith("| <= 1.005 | - |")
    assert rows[-1] == "A card: 2026-11-27, torch 2.14.1, transformers 5.23.0."


def test_without_a_card_the_page_says_so(tmp_path: Path) -> None:
    assert gpu_page.table(gpu_page.cards_in(tmp_path)).startswith("**No GPU was had")


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--small", "--device", "cpu"]])
def test_small_figures_never_reach_the_page(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_card", *words])
    with pytest.raises(SystemExit, match=r"--small|--out"):
        gpu_card.main()


@pytest.mark.integration
@pytest.mark.slow
def test_the_same_code_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--small", "--device", "cpu", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["gpu_card", *words])
    gpu_card.main()
    card = json.loads((tmp_path / "cpu.json").read_text())
    wanted = {row.figure for row in gpu_page.ROWS if "memory" not in row.what}
    assert wanted <= card["figures"].keys()  # memory is the card's alone
    assert all(value > 0 for value in card["figures"].values())
    assert card["small"]


def test_what_is_carried_is_pinned() -> None:
    pins = gpu_wheels.pinned()
    assert {"deepspeed", "peft", "zarr", "open-clip-torch"} <= pins.keys()
    assert not {"torch", "torchvision", "transformers"} & pins.keys()
    assert all("==" in pin for pin in pins.values())


def test_a_folder_without_wheels_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no wheels"):
        gpu_wheels.install(tmp_path)
