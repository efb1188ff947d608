"""Images that are objects of a bucket: `s3://bucket/folder`, or one object.

The listing holds names, sizes and times; an image is fetched when it is named, and once more when
it is encoded. Credentials and endpoint come from the environment, as for a store.
"""

import errno
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import UserError
from shared.imaging.contained import FileState
from teacher_cache.containers.faults import LARGE, LARGEST, REFUSED, ContainerFault
from teacher_cache.containers.names import looks_like_image

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore


class ObjectImage(NamedTuple):
    """An object of a bucket such as `s3://bucket`; `modified` in nanoseconds since the epoch."""

    bucket: str
    path: str
    size: int
    modified: int
    tag: str  # the server's, of the content

    def __str__(self) -> str:
        return f"{self.bucket}/{self.path}"

    def read(self) -> bytes:
        """Fetch it; raises OSError where it is gone or the server does not give it."""
        import obstore
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        if self.size > LARGEST:
            raise ContainerFault(LARGE)
        try:
            return bytes(obstore.get(_connection(self.bucket, os.getpid()), self.path).bytes())
        except FileNotFoundError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from None
        except BaseError:
            raise ContainerFault(REFUSED) from None

    def place(self) -> tuple[str, str]:
        """Return its address, and the server's tag of its content."""
        return str(self), f"tag={self.tag}"

    def state(self) -> FileState | None:
        """Return what the listing said of it."""
        return FileState(self.size, self.modified, self.modified)


def object_images(address: str) -> Iterator[ObjectImage]:
    """Yield the images below a folder of a bucket, sorted by name, or the one object of that name.

    Hidden names, text and tables by their ending, and Zarr groups are passed over, as in a folder.

    Raises
    ------
    UserError
        The bucket cannot be reached, or its listing is refused.
    """
    import obstore
    from obstore.exceptions import BaseError

    scheme, _, rest = address.partition("://")
    name, _, path = rest.strip("/").partition("/")
    bucket = f"{scheme}://{name}"
    folder = f"{path}/" if path else ""
    try:
        store = _connection(bucket, os.getpid())
        found = [one for batch in obstore.list(store, folder or None) for one in batch]
        if not found and path:
            found, folder = [obstore.head(store, path)], path.rpartition("/")[0]
    except FileNotFoundError:
        return
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot list {address}: {reason}") from None
    yield from _images(bucket, folder, found)


def _images(bucket: str, folder: str, found: "list[ObjectMeta]") -> Iterator[ObjectImage]:
    paths = (one["path"] for one in found)
    groups = {path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == "zarr.json"}
    for one in sorted(found, key=lambda one: one["path"]):
        path = one["path"]
        parts = [part for part in path[len(folder) :].split("/") if part]
        if not parts or not looks_like_image(parts) or _lies_in(path, groups):
            continue
        when = int(one["last_modified"].timestamp() * 10**9)
        yield ObjectImage(bucket, path, one["size"], when, one["e_tag"] or "")


def _lies_in(path: str, groups: set[str]) -> bool:
    """Whether an object lies below one of some folders."""
    if not groups:
        return False
    places = [at for at, one in enumerate(path) if one == "/"]
    return any(path[:at] in groups for at in (0, *places))


@lru_cache(maxsize=4)
def _connection(bucket: str, process: int) -> "ObjectStore":
    """Connect once a process: a connection does not survive a fork."""
    from shared.targets.storage.objects import connect

    return connect(bucket)
