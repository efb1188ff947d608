"""The Python door: the names that a program of one's own needs, loaded when they are first used.

`load` an adapter, read a `TargetStore`, find an image by its `content_key`, `open_image` as both
stages do, `build` targets of what `find_images` lists, `train` as a recipe says, `observe` what a
student holds of an image, `evaluate` a run. The rooms behind it are in docs/architecture.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.evaluation.loading import load_base_student, load_student
    from pipelines.evaluation.observed import observe
    from pipelines.evaluation.run import evaluate
    from shared.errors import UserError
    from shared.imaging import content_key, open_image
    from shared.recipe import load_recipe
    from shared.records import load_records
    from shared.targets import TargetStore
    from student_train.adapter.loading import load
    from student_train.run.train import train
    from teacher_cache.building import build
    from teacher_cache.sources import find_images

_HOMES = {
    "TargetStore": "shared.targets",
    "UserError": "shared.errors",
    "build": "teacher_cache.building",
    "content_key": "shared.imaging",
    "evaluate": "pipelines.evaluation.run",
    "find_images": "teacher_cache.sources",
    "load": "student_train.adapter.loading",
    "load_base_student": "pipelines.evaluation.loading",
    "load_recipe": "shared.recipe",
    "load_records": "shared.records",
    "load_student": "pipelines.evaluation.loading",
    "observe": "pipelines.evaluation.observed",
    "open_image": "shared.imaging",
    "train": "student_train.run.train",
}

__all__ = [
    "TargetStore",
    "UserError",
    "build",
    "content_key",
    "evaluate",
    "find_images",
    "load",
    "load_base_student",
    "load_recipe",
    "load_records",
    "load_student",
    "observe",
    "open_image",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name from its home: `import medalign` alone loads no model library."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
