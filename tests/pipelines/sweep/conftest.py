"""What the runs of a small study need."""

import pytest

from tests.fixtures.runs import write_test_set
from tests.fixtures.student_runs import write_store, write_train_file
from tests.fixtures.students import write_tiny_student


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model, records and targets for them."""
    folder = tmp_path_factory.mktemp("inputs")
    base = write_tiny_student(folder / "base")
    test = write_test_set(folder / "data", 3)
    names = ["0.png", "1.png", "2.png"]
    write_train_file(folder / "data" / "train.json", names, 8)
    write_store(folder / "store", folder / "data", names)
    return {"base": str(base), "data": str(test.parent), "store": str(folder / "store")}
