"""docs/architecture.md held to the code: files and names of its tables, and its list of rooms."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("shared", "teacher_cache", "student_train", "pipelines")
PLACES = re.findall(r"^\| .+\? \| `(\S+\.py)` \| (?:`(\w+)` )?\|$", PAGE, re.MULTILINE)
PLANNED = re.findall(r"^\| \w+: .+ \| `(\w+/\w+)/` \|$", PAGE, re.MULTILINE)
ROOMS = re.findall(r"^\| `([\w/]+)/` \| [^|]+ \|$", PAGE, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Names that the top level of a module defines; what it only imports is defined elsewhere."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_table_answers_what_a_newcomer_asks() -> None:
    questions = PAGE.partition("## Who may import whom")[0]
    wanted = (
        "become pixels", "L_att read attention", "score computed", "new teacher", "new student",
        "new decoding method", "new metric", "new storage", "result written",
        "regions", "figures", "sweeps", "explorer", "server",
    )  # fmt: skip
    assert [one for one in wanted if one not in questions] == []
    assert len(PLACES) == len(re.findall(r"^\| Where ", questions, re.MULTILINE))


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_every_place_is_there(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    if name:
        assert name in defined(ROOT / path)


@pytest.mark.parametrize("folder", PLANNED)
def test_what_is_planned_is_moved_up_once_it_is_there(folder: str) -> None:
    assert (ROOT / folder).parent.is_dir()
    assert not (ROOT / folder).exists(), f"{folder} is there: it belongs into the table of rooms"


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_lines_are_split_at_line_feeds_alone(package: str) -> None:
    """An answer may hold U+2028, which ends a line for str.splitlines and not for JSON."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert [path for path in files if ".splitlines(" in path.read_text(encoding="utf-8")] == []


def test_every_room_is_listed() -> None:
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    rooms = {str(folder.relative_to(ROOT)) for folder in folders} - {"pipelines"}
    listed = {room for room in ROOMS if room.split("/")[0] in PACKAGES}
    parts = {room for room in rooms if (ROOT / room / "__init__.py").is_file()}
    assert parts <= listed
    assert all((ROOT / room).is_dir() for room in listed - set(PLANNED))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_takes_anothers_private_name(package: str) -> None:
    taken = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules: set[str] = set()  # names here that are modules of this project
        for node in ast.walk(tree):
            if not (isinstance(node, ast.ImportFrom) and node.module):
                continue
            if node.module.partition(".")[0] not in PACKAGES:
                continue
            for alias in node.names:
                if alias.name.startswith("_"):
                    taken.append(f"{path.relative_to(ROOT)}: {node.module}.{alias.name}")
                place = ROOT.joinpath(*node.module.split("."), alias.name)
                if place.with_suffix(".py").is_file() or place.is_dir():
                    modules.add(alias.asname or alias.name)
        taken += [
            f"{path.relative_to(ROOT)}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ]
    assert taken == []


def test_every_annotated_shape_is_checked_in_the_tests() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = settings["tool"]["pytest"]["ini_options"]["addopts"]
    [names] = [one.partition("=")[2] for one in options if one.startswith("--jaxtyping-packages=")]
    checked = names.split(",")[:-1]  # the last is the checker
    unchecked = [
        module
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "from jaxtyping" in path.read_text(encoding="utf-8")
        and not any(
            (module := ".".join(path.relative_to(ROOT).with_suffix("").parts)) == one
            or module.startswith(f"{one}.")
            for one in checked
        )
    ]
    assert unchecked == []


def test_every_axis_of_one_letter_is_named_at_the_files_head() -> None:
    unnamed = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "from jaxtyping" not in text:
            continue
        tree = ast.parse(text)
        shapes = [
            node.slice.elts[-1].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Tuple)
            and isinstance(node.slice.elts[-1], ast.Constant)
        ]
        axes = {axis for shape in shapes if isinstance(shape, str) for axis in shape.split()}
        head = ast.get_docstring(tree) or ""
        unnamed += [
            f"{path.relative_to(ROOT)}: {axis}"
            for axis in sorted(one.removeprefix("*") for one in axes)
            if len(axis) == 1 and axis.isalpha() and not re.search(rf"\b{axis} [a-z]", head)
        ]
    assert unnamed == []
