"""Settings under which the methods are compared, as data.

What a preset does not name keeps its published default.

- `published`: each method as its own paper and code have it.
- `authors-llava-med`, `authors-huatuo` (`authors` picks by the model's template): the values in
  MEDALIGN's evaluation scripts for its two models. Their scripts also cap OPERA at 128 new tokens
  and LLaVA-Med's other methods at 1024 (`max_new_tokens` is for the run, not here).
- `equal`: one token budget and stop rule for all (the run's), and the likeliest token wherever a
  method leaves the choice; nucleus sampling is the one that cannot do without drawing.
"""

Preset = dict[str, dict[str, object]]

_AUTHORS: Preset = {
    "vcd": {"alpha": 1.0, "beta": 0.1, "noise_step": 500, "sample": True, "temperature": 1.0},
    "dola": {
        "candidate_layers": (0, 2, 4, 6, 8, 10, 12, 14),
        "relative_top": 0.1,
        "repetition_penalty": 1.0,
    },
    "avisc": {
        "gamma": 0.5,
        "lam": 1.0,
        "alpha": 1.0,
        "beta": 0.1,
        "sample": True,
        "temperature": 1.0,
    },
    "damro": {
        "alpha": 0.5,
        "beta": 0.1,
        "top_k": 10,
        "others": "zero",
        "attention": "last",
        "sample": True,
        "temperature": 1.0,
    },
    "pai": {"alpha": 0.2, "gamma": 1.1, "start_layer": 2, "boost_first": False},
}

_EQUAL: Preset = {name: {"sample": False} for name in ("vcd", "avisc", "m3id", "damro", "icd")}

PRESETS: dict[str, Preset] = {
    "published": {},
    "authors-llava-med": _AUTHORS
    | {
        "nucleus": {"temperature": 1.0, "top_p": 0.9, "top_k": 0},
        "m3id": {"decay": 0.02, "beta": 0.1, "sample": True, "temperature": 1.0},
        "opera": {"scale": 25.0, "threshold": 25, "candidates": 5, "penalty": 1.0},
    },
    "authors-huatuo": _AUTHORS
    | {
        "nucleus": {"temperature": None, "top_p": 0.9, "top_k": 0},
        "m3id": {"decay": 0.02, "beta": 0.1, "sample": True, "temperature": 0.7},
        "opera": {"scale": 50.0, "threshold": 15, "candidates": 5, "penalty": 1.0},
    },
    "equal": _EQUAL | {"dola": {"repetition_penalty": 1.0}},
}


def family_preset(preset: str, template: str) -> str:
    """Return the preset that `authors` stands for under this prompt template.

    Any other is itself.
    """
    if preset != "authors":
        return preset
    return "authors-huatuo" if template.startswith("huatuo") else "authors-llava-med"
