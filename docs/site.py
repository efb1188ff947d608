"""Hook of mkdocs: README, CONTRIBUTING and the notebook become pages; other files their names.

On the pages links lead to files of the repository, which is right in a clone and on a code host.
The site holds pages and pictures alone.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}  # file -> page
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")
NOTEBOOK = "notebook.ipynb"
FENCE = re.compile(r"^```(\w+) (?:run|skip:)[^\n]*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside `docs/`."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    notebook = (ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8")
    files.append(File.generated(config, "notebook.md", content=page_of(notebook)))
    return files


def page_of(notebook: str) -> str:
    """Return a notebook as a page: its texts, and its code in fences."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"]]
    pieces = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    return "\n\n".join([*pieces, f"[The notebook itself]({NOTEBOOK})"]) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from the repository's root into links from `docs/`; drop a fence's note."""
    outside = page.file.src_uri in PAGES.values()

    def link(found: re.Match[str]) -> str:
        picture, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        path = posixpath.normpath(target if outside else posixpath.join("docs", target))
        if path == f"docs/{NOTEBOOK}" and page.file.src_uri != "notebook.md":
            return f"[{text}](notebook.md)"
        if path.startswith("docs/"):
            return f"{picture}[{text}]({path.removeprefix('docs/')}{anchor})"
        if path in PAGES:
            return f"[{text}]({PAGES[path]}{anchor})"
        return text if "`" in text else f"`{path}`"

    return FENCE.sub(r"```\1", LINK.sub(link, markdown))
