"""`import medalign`: every public name is its home's own; nothing heavy is loaded before use."""

import subprocess
import sys

import pytest

import medalign


@pytest.mark.unit
def test_names_are_those_of_their_homes() -> None:
    from pipelines.evaluation.run import evaluate
    from shared.imaging import content_key
    from shared.targets import TargetStore
    from student_train.adapter.loading import load

    assert medalign.load is load
    assert medalign.evaluate is evaluate
    assert medalign.content_key is content_key
    assert medalign.TargetStore is TargetStore
    assert all(getattr(medalign, name) is not None for name in medalign.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loaded'"):
        medalign.loaded  # noqa: B018


@pytest.mark.unit
def test_importing_it_loads_no_model_library() -> None:
    code = "import sys, medalign; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
