"""The students as docs/models.md shows them.

`python -m student_train.models.listing` prints the page's two tables.
"""

import sys
from collections.abc import Sequence

from student_train.models import FAMILIES, LAYOUTS
from student_train.models.outline import PUBLISHED, Outline, outlined, published
from student_train.models.templates import TEMPLATES

# Published models without a name of their own here: their hub ids, and the files of their sizes.
OTHERS = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": "SmolVLM-256M",
    "OpenGVLab/InternVL3-8B-hf": "InternVL3-8B",
    "Qwen/Qwen3-VL-8B-Instruct": "Qwen3-VL-8B",
}


def outlines() -> dict[str, Outline]:
    """Return the outline of every model that is written down, by its name or hub id."""
    files = {name: name for name in FAMILIES} | OTHERS
    return {name: outlined(published(file), PUBLISHED) for name, file in files.items()}


def layouts() -> str:
    """Return the table of the layouts: who has which name, loader and template."""
    rows = [("`model_type`", "`model.name`", "loader in `student_train/models/`", "template")]
    named = {name: one.layout for name, one in outlines().items() if name in FAMILIES}
    for layout, module in LAYOUTS.items():
        names = [name for name, its in named.items() if its == layout]
        own = layout in TEMPLATES or not names  # which a folder of any name has
        places = [*(f"`{name}`" for name in names), *(["a folder or hub id"] if own else [])]
        template = layout if layout in TEMPLATES else None
        if template is None and names:
            template = FAMILIES[names[0]].template
        said = "its config's, or `model.template`" if template is None else f"`{template}`"
        rows.append((f"`{layout}`", ", ".join(places), f"`{module}.py`", said))
    return _table(rows)


def sizes() -> str:
    """Return the table of the published models: what `student inspect` says of each."""
    rows = [("model", "hub id", "image", "grid", "layers", "width")]
    for name, one in outlines().items():
        hub, shown = (FAMILIES[name].hub_id, f"`{name}`") if name in FAMILIES else (name, "")
        size = (f"{one.image_size} px", str(one.grid), str(one.layers), str(one.width))
        rows.append((shown, hub, *size))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(f"{layouts()}\n{sizes()}")
