"""Stage two: fine-tune the medical vision-language model while streaming the teacher's targets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from student_train.adapter.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Import `load` when it is first asked for: the command line answers `--help` without torch."""
    if name == "load":
        from student_train.adapter.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
