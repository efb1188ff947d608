"""A disk that is full, or a folder that can no longer be written, while a run saves."""

from pathlib import Path

from shared.errors import UserError
from student_train.adapter.files import is_whole
from student_train.run.outputs import last_checkpoint, partial_checkpoints

# As torch and safetensors say it, where the system's own error is lost on the way.
_SAID = (
    "No space left",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "file write failed",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


def unwritten(error: Exception, output: Path) -> UserError | None:
    """Return one line for an error of writing, with what is whole and how to go on.

    None for an error of another kind. Half a checkpoint is removed: its room is needed.
    """
    said = " ".join(str(error).split())
    if not isinstance(error, OSError) and not any(one in said for one in _SAID):
        return None
    import shutil

    for folder in partial_checkpoints(output):
        shutil.rmtree(folder, ignore_errors=True)
    reason = (error.strerror if isinstance(error, OSError) else None) or next(
        (one for one in _SAID[:4] if one in said), "the disk does not take more"
    )
    return UserError(f"cannot write to {output}: {reason}; {_way_on(output)}")


def _way_on(output: Path) -> str:
    checkpoint = last_checkpoint(output)
    if is_whole(output):
        return (
            f"the trained adapter is whole: `student inspect {output}` and student_train.load read "
            "it; only what stands beside it is missing"
        )
    if checkpoint is not None:
        return f"free space and go on from {checkpoint.name} with --resume"
    return "free space and start again: no checkpoint was written (train.save_steps)"
