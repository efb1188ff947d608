"""Settings every test shares.

One thread, no network look-ups by model libraries, a private cache directory.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as property_settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No example of a property is judged by the clock: a busy machine is slow, not wrong. The same
# examples on every machine; `HYPOTHESIS_PROFILE=search` (the weekly run) looks for new ones.
for name, known in (("same", True), ("search", False)):
    property_settings.register_profile(
        name, derandomize=known, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
property_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the caches of a test (store index, content keys) out of the user's own directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
