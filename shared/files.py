"""Files of the user's machine: written whole, and where caches go."""

import os
from collections.abc import Callable
from pathlib import Path


def whole_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path`, then rename it.

    A reader sees the whole file or none.
    """
    partial = path.with_name(f".{path.name}.part")
    write(partial)
    partial.replace(path)


def cache_directory() -> Path:
    """Folder of the rebuildable caches.

    `$MEDALIGN_CACHE`, else `medalign` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    explicit = os.environ.get("MEDALIGN_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medalign"
