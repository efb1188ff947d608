"""Every code block of README and docs is run here, or says in its opening line why it is not.

A fence opens with its language and then `run` or `skip: reason`. The `run` blocks of the README are
executed in order, each in a shell of its own, from an empty folder.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.imaging.keys import content_key
from tests.fixtures.pages import blocks, follow

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNABLE = {"bash", "sh", "python", "console"}
PERFORMANCE = ("build", "decoding", "metrics", "store", "train")  # from performance.md


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
    assert follow(ROOT / "README.md", tmp_path) >= 6


@pytest.mark.unit
def test_every_page_has_its_place_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w-]+\.md", text[text.index("nav:") :]))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    # README, CONTRIBUTING and the notebook become pages too
    assert named == pages | {"index.md", "contributing.md", "notebook.md"}


@pytest.mark.unit
def test_the_readme_leads_to_every_page() -> None:
    linked = re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text())
    below = {"statistics-table", *(f"performance-{one}" for one in PERFORMANCE)}
    named = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.stem not in below}
    assert named <= set(linked)


@pytest.mark.unit
def test_the_lines_under_troubleshooting_are_the_code_s() -> None:
    printed = {
        text
        for package in ("shared", "teacher_cache", "student_train", "pipelines")
        for file in (ROOT / package).rglob("*.py")
        for text in texts_of(file)
    }
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    named = re.findall(r"^- `([^`]+)`: ", page, re.MULTILINE)
    assert len(named) > 20
    assert not [line for line in named if not any(line in text for text in printed)]


def texts_of(file: Path) -> Iterator[str]:
    """Yield a file's strings; the values of an f-string are NUL."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            pieces = (one.value if isinstance(one, ast.Constant) else "\0" for one in node.values)
            yield "".join(map(str, pieces))
