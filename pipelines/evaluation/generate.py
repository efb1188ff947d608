"""Answer one question about one image, several or none, with the same code as an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.decoding.methods import decodings, watch_of
from pipelines.evaluation.arms import EVERYTHING, last_arm, preset_of
from pipelines.evaluation.loading import end_ids, load_student, pad_id
from shared.errors import UserError
from shared.vocabulary import WeightsDtype

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_at(image: str) -> "Image":
    """Open an image file, or a part of one ("scan.nii.gz#axial=90"), that a user names.

    Raises UserError where it is missing or cannot be read.
    """
    from shared.imaging.images import open_image, parse_reference
    from shared.imaging.pixels import UnreadableImage

    reference = parse_reference(image)
    if not reference.path.is_file():
        raise UserError(f"no image at {reference.path}")
    try:
        return open_image(reference)
    except UnreadableImage as error:
        raise UserError(f"{image} cannot be read: {error}") from None


def generate_answer(
    run: Path,
    images: str | Sequence[str],
    question: str,
    *,
    system: str = "",
    method: str = "beam",
    preset: str = "published",
    overrides: tuple[str, ...] = (),
    max_new_tokens: int = 128,
    seed: int = 0,
    device: str | None = None,
    base: str | None = None,
    dtype: WeightsDtype = "auto",
) -> str:
    """Return the answer of a run's adapter to `question` about `images`: one, several or none.

    MEDALIGN's where the run has both. `system` is a system message of its own; where empty, the
    template's stands.

    An image may name a part of a file, as in data files: "scan.nii.gz#axial=90". Raises UserError
    for a run without an adapter, an unknown method, an image that is missing or cannot be read.
    """
    from pipelines.decoding.generation import Limits
    from pipelines.decoding.prompts import collate

    if method == EVERYTHING:
        raise UserError("`generate` gives one answer; name one decoding method")
    folder = last_arm(run)
    [chosen] = decodings([method], preset_of(preset, {"": folder}), overrides)
    pictures = [picture_at(image) for image in ([images] if isinstance(images, str) else images)]
    student = load_student(folder, device, base, dtype)
    processor = student.processor
    encoded = processor.encode(question, pictures, system=system)
    reworded = [processor.reworded(question, len(pictures), system=system)]
    pad, watch = pad_id(processor), watch_of([chosen])
    prompts = collate([encoded], [question], student.model, pad, watch, reworded)
    limits = Limits(max_new_tokens, end_ids(processor))
    [tokens] = chosen.decode(student.model, prompts, limits, chosen.settings, seed)
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
