"""Every code block of README and docs is run here, or says in its opening line why it is not.

A fence opens with its language and then `run` or `skip: reason`. The `run` blocks of the README are
executed in order, each in a shell of its own, in a folder that holds what a new user would have:
`images/`, `train.json`, `test.json` and `student/`.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from shared.imaging.keys import content_key

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = {"bash", "sh", "python", "console"}


class Block(NamedTuple):
    language: str
    note: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(m[1], m[2].strip(), m[3]) for m in FENCE.finditer(page.read_text())]


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_code_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        if block.language in RUNNABLE:
            assert block.note == "run" or re.fullmatch(r"skip: .{10,}", block.note), (
                f"{page.name}: ```{block.language} {block.note}"
            )


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), (
            f"{page.name} -> {target}"
        )


@pytest.mark.unit
def test_the_content_key_vector_in_the_docs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    assert content_key(file).hex() == hashlib.sha256(b"abc").hexdigest()
    assert content_key(file).hex() in page
    assert content_key(file, "frame=12").hex() in page


@pytest.mark.integration
def test_the_readme_can_be_followed(tmp_path: Path) -> None:
    from tests.fixtures.newcomer import prepare

    prepare(tmp_path)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "default",
    }
    ran = 0
    for block in blocks(ROOT / "README.md"):
        if block.note != "run":
            continue
        command = (
            ["bash", "-euo", "pipefail", "-c", block.text]
            if block.language in {"bash", "sh"}
            else [sys.executable, "-c", block.text]
        )
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, (
            f"{block.text}\n{result.stdout[-3000:]}\n{result.stderr[-5000:]}"
        )
        ran += 1
    assert ran >= 3
