"""A resumed run finds its best checkpoint in the folder where it lies now."""

from types import SimpleNamespace

import pytest

from shared.errors import UserError
from shared.recipe import make_recipe
from student_train.run.callbacks import Claim

pytestmark = pytest.mark.unit


def resumed(folder, recorded):
    """What the Trainer's state names as best when a run in `folder` goes on."""
    recipe = make_recipe(
        {
            "output": str(folder),
            "data": {"validation": "v.json"},
            "train": {"best_metric": "eval_loss", "eval_steps": 2},
        }
    )
    state = SimpleNamespace(best_global_step=4, best_model_checkpoint=recorded)
    arguments = SimpleNamespace(output_dir=str(folder))
    Claim(recipe).on_train_begin(arguments, state, SimpleNamespace())
    return state.best_model_checkpoint


def test_in_a_moved_folder_and_in_its_own(tmp_path):
    own = tmp_path / "checkpoint-4"
    own.mkdir()
    # the Trainer forgets a place that is no more
    assert resumed(tmp_path, None) == str(own)
    assert resumed(tmp_path, str(own)) == str(own)


def test_a_best_checkpoint_that_is_nowhere_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"best checkpoint so far, checkpoint-4, is not in"):
        resumed(tmp_path, None)
