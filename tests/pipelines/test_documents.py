"""JSON documents between commands: whole, numbered, refused in one line with the way out."""

from pathlib import Path

import pytest

from pipelines.documents import read_document, write_document
from shared.errors import UserError

pytestmark = pytest.mark.unit
REMEDY = "make it again"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.json"
    write_document(file, {"schema": 1, "text": "Größe", "list": [1.5, None]})
    assert read_document(file, 1, REMEDY) == {"schema": 1, "text": "Größe", "list": [1.5, None]}
    assert "Größe" in file.read_text(encoding="utf-8")
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_document_without_a_number_has_schema_1(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"rows": []}')
    assert read_document(file, 1, REMEDY) == {"rows": []}
    with pytest.raises(UserError, match="has schema 1, this version reads 2; make it again"):
        read_document(file, 2, REMEDY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": 2}', "has schema 2, this version reads 1"),
        ('{"schema": "1"}', "has schema '1', this version reads 1"),
        ("[1]", "holds a list, not an object"),
        ('{"rows"', "is not JSON"),
    ],
)
def test_another_document_is_refused_with_the_way_out(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_document(file, 1, REMEDY)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith(REMEDY)
    assert "\n" not in str(caught.value)
