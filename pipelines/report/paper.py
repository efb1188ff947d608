"""The paper's numbers: Tables 1 to 3, as data (`paper_tables.json`)."""

import json
from pathlib import Path
from typing import TypedDict, cast

PAPER = Path(__file__).with_name("paper_tables.json")
MODELS = {"huatuogpt-vision": "HuatuoGPT-Vision-7B", "llava-med": "LLaVA-Med-1.5"}
SETS = {
    "iu-xray-report": "IU-Xray",
    "mimic-cxr-report": "MIMIC-CXR",
    "slake": "SLAKE",
    "vqa-rad": "VQA-RAD",
    "path-vqa": "PathVQA",
    "iu-xray-vqa": "IU-Xray",
    "omnimedvqa": "OmniMedVQA",
}
REPORT_SETS = ("iu-xray-report", "mimic-cxr-report")
SCORES = {
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "bertscore": "BERTScore",
    "chexbert": "CheXbert similarity",
    "radgraph": "RadGraph (entity + relation) / 2",
    "ratescore": "RaTEScore",
    "open": "Open",
    "close": "Close",
}


class Paper(TypedDict):
    """What `paper_tables.json` holds: numbers by model, set, column, in the order of `methods`."""

    source: str
    methods: list[str]
    numbers: dict[str, dict[str, dict[str, list[float]]]]


def read_paper() -> Paper:
    """Read the paper's numbers."""
    return cast("Paper", json.loads(PAPER.read_text(encoding="utf-8")))
