"""Lines by number are those of the whole file, whichever are asked for first."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipelines.explore import lines
from pipelines.explore.lines import LineFile

pytestmark = pytest.mark.unit
# what splits lines elsewhere, and letters of several bytes
LETTERS = some.text(some.sampled_from(["a", "é", "\u2028", "\r", "\x0b", "\x85", '"', "漢"]))


@given(
    some.lists(LETTERS, max_size=40),
    some.lists(some.tuples(some.integers(0, 45), some.integers(0, 12)), max_size=8),
    some.integers(1, 9),
)
def test_any_lines_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    asked: list[tuple[int, int]],
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_FIRST", chunk)  # so that letters and lines cross the chunks
        patch.setattr(lines, "_LARGEST", 4 * chunk)
        file = LineFile(path)
        for start, count in asked:
            assert file.lines(start, count) == texts[start : start + count]
        file.close()


def test_a_last_line_without_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo")
    file = LineFile(path)
    assert file.lines(0, 9) == ["one", "two"]
    assert file.lines(1, 1) == ["two"]
    file.close()


def test_the_file_that_was_opened_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old\n" * 3)
    file = LineFile(path)
    (tmp_path / "b").write_bytes(b"newer\n")
    (tmp_path / "b").replace(path)
    assert file.lines(2, 1) == ["old"]
    file.close()
