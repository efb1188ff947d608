"""Save what figures need of a prompt's prefill.

Hidden states at chosen layers and attention maps, for chosen items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluation.answers import Item, Loaded, encoded_prompts
from shared.errors import UserError


def save_states(
    items: Sequence[Item], student: Loaded, layers: Sequence[int], image_root: Path, folder: Path
) -> None:
    """Write `<item>.safetensors` for each item into `folder`.

    `hidden.J` (T, d) float16: what enters decoder layer J, after W where J is a distillation layer.
    `attention.J` (N,) float32: attention of layer J from the question (all text after the last
    image) to the image tokens, mean over heads and rows, as the alignment loss sees it. `ids` (T,):
    the prompt's token ids. Raises UserError for a layer that the model does not have.
    """
    from safetensors.torch import save_file

    depth = len(student.model.get_decoder().layers)
    if not all(0 <= layer < depth for layer in layers):
        raise UserError(
            f"this model has decoder layers 0..{depth - 1}, not all of "
            f"{', '.join(map(str, layers))}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        tensors = prefill_states(
            student.model, encoded_prompts([item], student, image_root), layers
        )
        name = "".join(
            letter if letter.isalnum() or letter in "-_." else "-" for letter in item.record.id
        )
        save_file(
            tensors,
            folder / f"{name}.safetensors",
            metadata={"item": item.record.id, "images": ", ".join(item.images)},
        )


def prefill_states(model: Any, prompts: Any, layers: Sequence[int]) -> dict[str, Any]:
    """Run one prompt (a batch of one) and return the tensors that `save_states` writes."""
    import torch

    from pipelines.decoding.attention import Rows, watching

    image = prompts.image_mask[0]
    places = torch.nonzero(image).flatten()
    question = prompts.ids.shape[1] - 1 - int(places[-1]) if len(places) else 0
    found: dict[str, Any] = {"ids": prompts.ids[0].cpu()}

    def read(layer: int, rows: Rows) -> None:
        if question:
            weights = torch.softmax(rows.logits(question), dim=-1)[0]  # (H, rows, T)
            found[f"attention.{layer}"] = weights.mean((0, 1))[image].cpu().contiguous()

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            found[f"hidden.{layer}"] = entering[0].half().cpu().contiguous()

        return hook

    blocks = model.get_decoder().layers
    handles = [
        blocks[layer].register_forward_pre_hook(keep(layer), with_kwargs=True) for layer in layers
    ]
    try:
        with torch.no_grad(), watching(model, layers, read):
            model(**prompts.model_inputs(), logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found
