"""The quickstart's page: who looks where, before and after, and the patches that are alike.

One HTML file that needs no network: images, maps and similarities are in it, and plain JavaScript
draws them.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.documents import write_text
from shared.targets.numbers.triangle import square_of

TEMPLATE = Path(__file__).parent / "quickstart.html"
SHOWN, SIDE = 4, 288  # images on the page, and their side in pixels


def write_page(out: Path, before: float, after: float) -> Path:
    """Write `out`/index.html for a finished quickstart.

    Parameters
    ----------
    before, after
        L_vis over the held-out images.
    """
    import jinja2

    from pipelines.evaluation.loading import load_base_student, load_student
    from pipelines.regions.alignment import observe_all
    from pipelines.regions.sources import sources_of, trained_of

    trained = trained_of(out / "medalign")
    [folder] = trained.arms.values()
    base = load_base_student(folder, trained.recipe)
    grid = base.processor.grid
    held = sources_of(trained, grid).held
    chosen = [held[place * len(held) // SHOWN] for place in range(min(SHOWN, len(held)))]
    first = observe_all(base, chosen, trained.layer, "before")
    last = observe_all(load_student(folder, named=False), chosen, trained.layer, "after")
    images = [
        {
            "name": one.record.id,
            "picture": _picture(one.reference.path),
            "visible": one.visible.tolist(),
            "maps": {
                "teacher": _share(one.attention, one.visible),
                "before": _share(first.attention[number], one.visible),
                "after": _share(last.attention[number], one.visible),
            },
            "alike": {
                "teacher": _bytes(square_of(np.asarray(one.similarity, dtype=np.float32))),
                "before": _bytes(_cosines(first.tokens[number])),
                "after": _bytes(_cosines(last.tokens[number])),
            },
        }
        for number, one in enumerate(chosen)
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        before=before,
        after=after,
        held=len(held),
        layer=trained.layer,
        # "<" would end the script where a name holds a tag
        data=json.dumps({"rows": grid.rows, "columns": grid.columns, "images": images}).replace(
            "<", "\\u003c"
        ),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _picture(path: Path) -> str:
    """Return the padded square that the models see, as a data URL."""
    from PIL import Image

    from shared.imaging.images import ImageReference, open_image
    from shared.imaging.squares import square

    stream = io.BytesIO()
    shown: Image.Image = square(open_image(ImageReference(path, None)), SIDE, "pad", (0, 0, 0))
    shown.convert("L").save(stream, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _share(weights: NDArray[np.generic] | None, visible: NDArray[np.bool_]) -> list[float]:
    """Attention over the visible patches, brought to a sum of one."""
    if weights is None:
        raise ValueError("the quickstart's own store holds E_a")
    kept = np.where(visible, np.asarray(weights, dtype=np.float64), 0.0)
    return [round(float(value), 6) for value in kept / max(kept.sum(), 1e-12)]


def _cosines(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True).clip(1e-12)
    cosines: NDArray[np.float32] = units @ units.T
    return cosines


def _bytes(similarity: NDArray[np.float32]) -> str:
    """Return -1..1 as bytes 0..255, row by row, in base64."""
    levels = np.rint((similarity.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode()
