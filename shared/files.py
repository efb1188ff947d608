"""Files of the user's machine: written whole, refusals told in one line, where caches go."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import UserError


def whole_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path`, then rename it.

    A reader sees the whole file or none.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        write(partial)
        partial.replace(path)
    except OSError:
        # A full disk keeps no half: its room is needed for what is whole.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def follow_umask(folder: Path) -> None:
    """Let others read the files of a folder as far as this process's umask says.

    Libraries that write through a temporary file (safetensors, PEFT) leave mode 0600.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):  # another owner's file
                path.chmod(0o666 & ~mask)


@contextmanager
def refused_as(what: str, way_out: str = "") -> Iterator[None]:
    """Turn what the system refuses inside (OSError) into one line for the user.

    Parameters
    ----------
    what
        Begins the line, such as `cannot write to the store S`; the system's reason follows.
    way_out
        Ends it.

    Raises
    ------
    UserError
        For any OSError.
    """
    try:
        yield
    except OSError as error:
        end = f"; {way_out}" if way_out else ""
        raise UserError(f"{what}: {error.strerror or error}{end}") from error


def check_writable(folder: Path, way_out: str) -> None:
    """Refuse a folder that cannot be made or written, before any work; leave no trace.

    Raises
    ------
    UserError
        With the system's reason and `way_out`.
    """
    place = Path(os.path.abspath(folder))  # noqa: PTH100 - links are followed by the system
    while not place.exists() and place != place.parent:
        place = place.parent
    with refused_as(f"cannot write to {folder}", way_out), tempfile.TemporaryFile(dir=place) as one:
        one.write(bytes(4096))
        one.flush()


def check_new(out: Path) -> None:
    """Refuse an --out that holds something or cannot be written, before any work.

    Raises
    ------
    UserError
        It is a folder that is not empty, or as `check_writable`.
    """
    check_writable(out, "choose another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out or remove it first")


def cache_directory() -> Path:
    """Folder of the rebuildable caches.

    `$MEDALIGN_CACHE`, else `medalign` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    explicit = os.environ.get("MEDALIGN_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medalign"


def cache_bytes() -> int:
    """Return how many bytes of targets from far away may be kept in `cache_directory`.

    `$MEDALIGN_CACHE_GB` gigabytes, else 10.

    Raises
    ------
    UserError
        If it is no number of 0 or more.
    """
    given = os.environ.get("MEDALIGN_CACHE_GB") or "10"
    try:
        count = float(given)
        if not 0 <= count < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(
            f"MEDALIGN_CACHE_GB is a number of gigabytes, 0 for no copies of targets, not {given!r}"
        ) from None
    return round(count * 1e9)
