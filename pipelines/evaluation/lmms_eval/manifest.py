"""What lmms-eval finds at the entry point `lmms_eval.models`: the model `medalign`."""

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's own description of the model, which is loaded where it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="medalign", simple_class_path="pipelines.evaluation.lmms_eval.model.MedAlign"
    )
