"""Which images a build is asked for: a folder, one file, a glob, or a data set file."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.images import ImageReference, parse_reference

DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
_TEXT = {
    ".json",
    ".jsonl",
    ".parquet",
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".xml",
    ".html",
    ".zip",
}
_LITTER = {"DICOMDIR", "Thumbs.db", "desktop.ini"}  # indexes of a folder, beside its images


def find_images(images: str, image_root: str | None = None) -> list[ImageReference]:
    """List the images behind `--images`, each once, in a fixed order.

    Parameters
    ----------
    images
        A folder (searched through, links to folders too; hidden files, a folder's indexes, and
        text and tables by their ending, are passed over), a glob, one file
        (`scan.nii.gz#axial=90` for one slice), or a data set file (.json, .jsonl, .parquet).
    image_root
        Folder that the paths of a data set file are relative to; its own folder by default.

    Raises
    ------
    UserError
        Nothing there, or a data set file that names images which are not there.
    """
    path = Path(images)
    if path.suffix in DATA_SUFFIXES and path.is_file():
        return _of_data_set(path, image_root)
    if image_root is not None:
        raise UserError("--image-root belongs to a data set file (.json, .jsonl, .parquet)")
    if path.is_dir():
        with refused_as(f"cannot search {path}", "make its folders readable"):
            found = _below(path)
    elif path.is_file():
        found = [ImageReference(path)]
    elif (reference := parse_reference(images)).path.is_file():
        found = [reference]
    else:
        matches = glob.glob(images, recursive=True)  # noqa: PTH207 - a user's pattern may be absolute
        found = _once(Path(name) for name in sorted(matches, key=lambda name: (len(name), name)))
    if not found:
        raise UserError(
            f"no images at {images}: --images takes a folder, a file, a glob or a data set file"
        )
    return found


def _once(paths: Iterable[Path]) -> list[ImageReference]:
    """Return the files, each place once: `**` goes round in a circle of links many times."""
    folders: dict[Path, Path] = {}
    places: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        places.setdefault(folders[path.parent] / path.name, path)
    return [ImageReference(path) for path in sorted(places.values()) if _is_file(path)]


def _below(folder: Path) -> list[ImageReference]:
    return [
        ImageReference(file)
        for file in sorted(_walk(folder, frozenset()))
        if _looks_like_image(file.relative_to(folder))
    ]


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yield all files below, through links to folders too, but not round in a circle of them.

    Not the files of a Zarr group: a store may lie among its images.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    entries = list(folder.iterdir())
    if here in above or any(entry.name == "zarr.json" for entry in entries):
        return
    for entry in entries:
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _walk(entry, above | {here})
        elif _is_file(entry):
            yield entry


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link to nothing, which the build then names as unreadable."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _looks_like_image(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.suffix.lower() not in _TEXT and file.name not in _LITTER


def _of_data_set(path: Path, image_root: str | None) -> list[ImageReference]:
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
