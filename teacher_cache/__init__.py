"""Stage one: the expert runs once per image and its targets go into a Zarr store.

    import teacher_cache
    from teacher_cache.sources import find_images

    teacher_cache.build("dinov2-small", find_images("images"), "store")

`build` and its `Settings` are loaded when they are first asked for: the command's help waits for no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teacher_cache.building import build
    from teacher_cache.settings import Settings

__all__ = ["Settings", "build"]

_HOMES = {"build": "teacher_cache.building", "Settings": "teacher_cache.settings"}


def __getattr__(name: str) -> object:
    """Load a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
