"""Hook of mkdocs: README and CONTRIBUTING become pages; files that are no pages become their names.

On the pages links lead to files of the repository, which is right in a clone and on a code host.
The site holds pages and pictures alone.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}  # file -> page
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")
FENCE = re.compile(r"^```(\w+) (?:run|skip:)[^\n]*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside `docs/`."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from the repository's root into links from `docs/`; drop a fence's note."""
    outside = page.file.src_uri in PAGES.values()

    def link(found: re.Match[str]) -> str:
        picture, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        path = posixpath.normpath(target if outside else posixpath.join("docs", target))
        if path.startswith("docs/"):
            return f"{picture}[{text}]({path.removeprefix('docs/')}{anchor})"
        if path in PAGES:
            return f"[{text}]({PAGES[path]}{anchor})"
        return text if "`" in text else f"`{path}`"

    return FENCE.sub(r"```\1", LINK.sub(link, markdown))
