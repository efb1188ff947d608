"""A lease holds a place against others while its process lives, and leaves nothing behind."""

import pytest

from shared.targets.storage import lease as module
from shared.targets.storage import open_storage
from shared.targets.storage.lease import STALE, lease

pytestmark = pytest.mark.unit
PATH = "space-1/.lease"


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    found = open_storage(tmp_path / "store" if request.param == "folder" else "memory:///store")
    found.create("space-1/zarr.json", b"{}")
    return found


def test_one_holds_it_and_it_is_gone_at_the_end(storage):
    with lease(storage, PATH) as hold:
        assert hold is not None
        assert hold()
        with lease(storage, PATH) as other:
            assert other is None
        assert hold()
    assert not storage.exists(PATH)
    with lease(storage, PATH) as again:
        assert again is not None


def test_a_dead_ones_lease_is_taken_over_and_it_notices(storage, monkeypatch):
    with lease(storage, PATH) as hold:
        assert hold is not None
        monkeypatch.setattr(module, "_age", lambda *_: STALE + 1)
        with lease(storage, PATH) as other:
            assert other is not None
            assert not hold()
            assert other()
        storage.create(PATH, b"of a third")
    assert storage.read(PATH) == b"of a third"


def test_a_living_ones_is_not(storage, monkeypatch):
    with lease(storage, PATH):
        monkeypatch.setattr(module, "_age", lambda *_: STALE)
        with lease(storage, PATH) as other:
            assert other is None
