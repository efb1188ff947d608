"""Options given twice, through the programs' own entry."""

import sys
from pathlib import Path

import pytest

from pipelines.cli import app as medalign
from pipelines.regions.cache import app as cache
from shared.console import run
from student_train.cli import app as student

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("cache", "build --images a --images b --store s", "--images is given 2 times"),
        ("cache", "verify --store a --store=b", "--store is given 2 times"),
        ("medalign", "data check a --image-root b --image-root c", "--image-root is given"),
        ("medalign", "evaluate --run a --limit 1 --limit 2 --limit 3", "--limit is given 3 times"),
        ("student", "export a --to b --to c", "--to is given 2 times"),
    ],
)
def test_an_option_given_twice_is_refused(
    name: str,
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    with pytest.raises(SystemExit) as end:
        run({"cache": cache, "medalign": medalign, "student": student}[name], name)
    assert end.value.code == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_list_may_be_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "sweep nowhere.yaml --work w --set a=b --set c=d"
    monkeypatch.setattr(sys, "argv", ["medalign", *words.split()])
    with pytest.raises(SystemExit):
        run(medalign, "medalign")
    assert "times" not in capsys.readouterr().err
