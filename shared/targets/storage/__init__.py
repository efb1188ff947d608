"""Where a store's files live: a folder, or a bucket of an object store."""

from pathlib import Path

from shared.targets.storage.base import Storage, join
from shared.targets.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "join", "open_storage"]


def open_storage(root: str | Path) -> Storage:
    """Choose the storage behind a `--store` argument: a folder, or `s3://bucket/prefix`."""
    if "://" in str(root):
        from shared.targets.storage.objects import ObjectStorage

        return ObjectStorage(str(root))
    return LocalStorage(Path(root).expanduser())
