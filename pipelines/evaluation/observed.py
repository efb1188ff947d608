"""What a student looks at: the question's attention over the image, as the loss L_att sees it.

Rows: all text after the last image. Columns: the image tokens. The mean over heads and rows, not
normalised. Saved with hidden states for figures, or read for a page.

N patches, d student width, n images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from pipelines.evaluation.answers import encoded_prompts
from pipelines.evaluation.items import Item
from pipelines.evaluation.loading import Loaded, pad_id
from shared.errors import UserError
from shared.imaging.images import ImageReference

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipelines.decoding.prompts import Model, Prompts
    from student_train.attention import Request
    from student_train.imagetext import DecoderLayer
    from student_train.kernel import AttentionCall


class Seen(NamedTuple):
    """What a student held of one image, by decoder layer.

    `tokens` (N, d): what enters the layer on the image's patches, after W where it acts there.
    `attention` (N,): the question's attention over them in that layer. Float32.
    """

    tokens: dict[int, Float[np.ndarray, "N d"]]
    attention: dict[int, Float[np.ndarray, " N"]]


def observe(
    student: Loaded,
    question: str,
    images: Sequence[ImageReference],
    layers: Sequence[int],
    *,
    system: str = "",
) -> Seen:
    """Ask a question about one image and return what the layers held of it.

    `system` is the record's own system message, where it has one.

    Raises
    ------
    UserError
        A layer that the model does not have.
    """
    import torch

    from pipelines.decoding.prompts import collate

    model = student.model
    blocks = check_layers(model, layers)
    encoded = student.processor.encode(question, list(images), system=system)
    prompts = collate([encoded], [question], model, pad_id(student.processor))
    found: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for layer in layers:
            keep = _keeping(found, str(layer), half=False)
            handle = blocks[layer].register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        attention = stack.enter_context(_question_attention(model, prompts, layers))
        stack.enter_context(_up_to(model, max(layers)))
        model(**prompts.model_inputs(), logits_to_keep=1)
    columns = prompts.image_mask[0].cpu()
    return Seen(
        {layer: found[str(layer)][columns].float().numpy() for layer in layers},
        {layer: weights.float().numpy() for layer, weights in attention.items()},
    )


def check_layers(model: "Model", layers: Sequence[int]) -> "Sequence[DecoderLayer]":
    """Return the decoder's layers; a UserError for one that it does not have."""
    blocks = model.get_decoder().layers
    if not all(0 <= layer < len(blocks) for layer in layers):
        raise UserError(
            f"this model has decoder layers 0..{len(blocks) - 1}, not all of "
            f"{', '.join(map(str, layers))}"
        )
    return blocks


@contextmanager
def _up_to(model: "Model", last: int) -> Iterator[None]:
    """Run the decoder's layers up to `last` alone: nobody looks at what comes behind them."""
    decoder = model.get_decoder()
    every = decoder.layers
    decoder.layers = every[: last + 1]
    try:
        yield
    finally:
        decoder.layers = every


def save_states(
    items: Sequence[Item], student: Loaded, layers: Sequence[int], image_root: Path, folder: Path
) -> None:
    """Write `<item>.safetensors` for each item into `folder`.

    `hidden.J` (T, d) float16: what enters decoder layer J, after W where J is a distillation layer.
    `attention.J` (N,) float32: attention of layer J from the question to the image tokens. `ids`
    (T,): the prompt's token ids. Raises UserError for a layer that the model does not have.
    """
    import torch
    from safetensors.torch import save

    model = student.model
    blocks = check_layers(model, layers)
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        prompts = encoded_prompts([item], student, image_root)
        found = {"ids": prompts.ids[0].cpu()}
        with torch.no_grad(), ExitStack() as stack:
            for layer in layers:
                keep = _keeping(found, f"hidden.{layer}")
                handle = blocks[layer].register_forward_pre_hook(keep, with_kwargs=True)
                stack.callback(handle.remove)
            attention = stack.enter_context(_question_attention(model, prompts, layers))
            model(**prompts.model_inputs(), logits_to_keep=1)
        found |= {f"attention.{layer}": weights for layer, weights in attention.items()}
        about = {"item": item.record.id, "images": ", ".join(item.images)}
        _states_file(folder, item.record.id).write_bytes(save(found, metadata=about))


def states_folder(evaluation: Path, arm: str) -> Path:
    """Where an evaluation keeps what the arm of this name held of the items asked for."""
    return evaluation / "states" / arm.lower()


def kept_attention(folder: Path, name: str) -> dict[int, Float[np.ndarray, " N"]]:
    """Read the attention that `save_states` kept of an item, by layer; none where it kept none."""
    from safetensors import SafetensorError, safe_open

    path = _states_file(folder, name)
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "numpy") as states:
            if (states.metadata() or {}).get("item") != name:  # another id of the same letters
                return {}
            layers = (one.partition(".") for one in states.keys())  # noqa: SIM118 - no mapping
            return {
                int(layer): states.get_tensor(f"{kind}.{layer}")
                for kind, _, layer in layers
                if kind == "attention"
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove it, or run `medalign evaluate` again"
        ) from None


def _states_file(folder: Path, name: str) -> Path:
    letters = (letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return folder / f"{''.join(letters)}.safetensors"


@contextmanager
def _question_attention(
    model: "Model", prompts: "Prompts", layers: Sequence[int]
) -> "Iterator[dict[int, Tensor]]":
    """Collect the attention (N,) of each of `layers` in the forward passes inside the block.

    `prompts` is a batch of one; without an image nothing is collected.
    """
    from pipelines.decoding.attention import watching
    from student_train.attention import question_attention

    request = _request_of(prompts)
    found: dict[int, Tensor] = {}

    def read(layer: int, call: "AttentionCall") -> None:
        if request is not None:
            found[layer] = question_attention(call, request)[0].cpu().contiguous()

    with watching(model, layers, read):
        yield found


def _request_of(prompts: "Prompts") -> "Request | None":
    """Ask for the image's columns, and for every row of text after the last image."""
    import torch

    from student_train.attention import Request

    columns = prompts.image_mask[0].nonzero()[:, 0]
    length, first = prompts.ids.shape[1], torch.zeros(1, dtype=torch.int64, device=columns.device)
    if not len(columns) or int(columns[-1]) + 1 == length:
        return None
    rows = torch.arange(int(columns[-1]) + 1, length, device=columns.device)
    return Request(
        image_sample=first,
        image_columns=columns[None],
        span_image=first,
        span_rows=rows[None],
        span_lengths=first + len(rows),
    )


def _keeping(
    found: "dict[str, Tensor]", name: str, half: bool = True
) -> "Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]":
    """Return a hook that keeps what enters its layer under `name`."""

    def hook(module: "nn.Module", args: "tuple[Tensor, ...]", kwargs: "dict[str, Tensor]") -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        kept = entering[0].half() if half else entering[0]
        found[name] = kept.cpu().contiguous()

    return hook
