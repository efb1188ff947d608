"""Which images a build is asked for: a folder, one file, a glob, a data set file, a bucket.

A tar, and a parquet file that holds images, stand for the images inside them, wherever they lie.
"""

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.contained import AnyReference
from shared.imaging.images import ImageReference, parse_reference
from teacher_cache.containers.faults import TABLE, Faulty
from teacher_cache.containers.names import looks_like_image
from teacher_cache.containers.tables import image_columns, table_images
from teacher_cache.containers.tars import TAR_SUFFIXES, tar_images

DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
TABLE_SUFFIX = ".parquet"


def find_images(
    images: str | Path, image_root: str | None = None, limit: int | None = None
) -> list[AnyReference]:
    """List the images behind `--images`, each once, in a fixed order.

    Only their names are listed, and nothing of them is read but a container's index.

    Parameters
    ----------
    images
        A folder (searched through, links to folders too, each folder once; hidden files, a folder's
        indexes, and text and tables by their ending, are passed over), a glob, one file
        (`scan.nii.gz#axial=90` for one slice), a tar or a parquet file that holds images, a folder
        of a bucket (`s3://bucket/folder`), or a data set file (.json, .jsonl, .parquet).
    image_root
        Folder that the paths of a data set file are relative to; its own folder by default.
    limit
        Take only the first so many.

    Raises
    ------
    UserError
        Nothing there, or a data set file that names images which are not there.
    """
    path = Path(images)
    if path.suffix in DATA_SUFFIXES and path.is_file() and not _holds_images(path):
        return _of_data_set(path, image_root)[:limit]
    if image_root is not None:
        raise UserError(
            "--image-root belongs to a data set file (.json, .jsonl, .parquet) that names files"
        )
    found = list(islice(_found(str(images)), limit))
    if not found:
        raise UserError(
            f"no images at {images}: --images takes a folder, a file, a glob, a tar, a parquet "
            "file, a folder of a bucket or a data set file"
        )
    return found


def _found(images: str) -> Iterator[AnyReference]:
    path = Path(images)
    if "://" in images:
        from teacher_cache.containers.buckets import object_images

        yield from object_images(images)
    elif path.is_dir():
        with refused_as(f"cannot search {path}", "make its folders readable"):
            files = sorted(_walk(path))
        for file in files:
            yield from _of_file(file, file.relative_to(path).parts)
    elif path.is_file():
        yield from _of_file(path)
    elif (reference := parse_reference(images)).path.is_file():
        yield reference
    else:
        # A user's pattern may be absolute.
        matches = glob.glob(images, recursive=True)  # noqa: PTH207
        named = sorted(matches, key=lambda name: (len(name), name))
        for file in _once(Path(name) for name in named):
            yield from _of_file(file)


def _of_file(file: Path, below: tuple[str, ...] | None = None) -> Iterator[AnyReference]:
    """Yield what a file holds: the images of a container, else itself.

    `below` are the parts of its path below the folder searched, where its name decides; a file
    that is named is taken as it is.
    """
    name = file.name.lower()
    hidden = below is not None and any(part.startswith(".") for part in below)
    if hidden or not (name.endswith((*TAR_SUFFIXES, TABLE_SUFFIX)) and file.is_file()):
        if below is None or looks_like_image(below):
            yield ImageReference(file)
    else:
        try:
            if name.endswith(TAR_SUFFIXES):
                yield from tar_images(file)
            else:
                yield from table_images(file, image_columns(file))
        except UserError:
            yield Faulty(str(file), TABLE)
        except OSError as error:
            yield Faulty(str(file), error.errno or TABLE)


def _holds_images(path: Path) -> bool:
    """Whether a data set file is a parquet file with bytes of images, and no list of paths."""
    if path.suffix != TABLE_SUFFIX:
        return False
    try:
        return bool(image_columns(path))
    except (UserError, OSError):  # it is read as a data set file, which says more
        return False


def _once(paths: Iterable[Path]) -> list[Path]:
    """Return the files, each place once: `**` goes round in a circle of links many times."""
    folders: dict[Path, Path] = {}
    places: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        places.setdefault(folders[path.parent] / path.name, path)
    return [path for path in sorted(places.values()) if _is_file(path)]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below, through links to folders too.

    Each folder is entered once, by its own path where it has one below: links may lead round in
    circles, or a thousand times to one place. Not the files of a Zarr group: a store may lie among
    its images.
    """
    entered: set[tuple[int, int]] = set()
    linked = deque([folder])
    while linked:
        waiting = [linked.popleft()]
        while waiting:
            one = waiting.pop()
            status = one.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(one) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
            if any(entry.name == "zarr.json" for entry in entries):
                continue
            for entry in entries:
                path = Path(entry.path)
                if not _is_folder(entry):
                    if entry.is_file(follow_symlinks=False) or _is_file(path):
                        yield path
                elif not entry.name.startswith("."):
                    (linked if entry.is_symlink() else waiting).append(path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link to nothing, which the build then names as unreadable."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _of_data_set(path: Path, image_root: str | None) -> list[AnyReference]:
    from shared.records import image_root_of, load_records

    root = image_root_of(path, image_root)
    found = dict.fromkeys(
        reference for record in load_records(path) for reference in record.references(root)
    )
    missing = [reference for reference in found if not reference.path.is_file()]
    if missing:
        first = ", ".join(str(reference) for reference in missing[:3])
        raise UserError(
            f"{path} names {len(missing)} images that are not there (first: {first}); pass their "
            "folder as --image-root"
        )
    if not found:
        raise UserError(f"{path} names no images: its records are text only")
    return list(found)
