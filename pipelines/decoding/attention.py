"""The language model's attention while it decodes: read the newest tokens' rows, or change one.

B rows of a batch, H heads, T tokens so far, R of the newest rows.

The tap itself is `student_train.kernel`; the training-time tap of layer l stays underneath.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from torch import Tensor

from student_train.imagetext import ImageTextModel
from student_train.kernel import AttentionCall, Listener, tap

# (layer, call) -> changed logits (B, H, R, T) of the newest R rows, or None to leave them alone
RowFunction = Callable[[int, AttentionCall], Tensor | None]

_undisturbed: ContextVar[bool] = ContextVar("undisturbed", default=False)


@contextmanager
def watching(
    model: ImageTextModel, layers: Iterable[int], function: RowFunction, *, views: bool = False
) -> Iterator[None]:
    """Call `function` in every attention call of `layers` inside the block.

    `views`: in the passes that `undisturbed` leaves alone too.
    """
    blocks = model.get_decoder().layers
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(tap(blocks[layer].self_attn, _of_layer(layer, function, views)))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every row alone inside the block (the contrast pass within a watched generation)."""
    token = _undisturbed.set(True)
    try:
        yield
    finally:
        _undisturbed.reset(token)


def seeing(logits: Tensor) -> Tensor:
    """Return the logits (B, H, R, T), zero in rows that see no key.

    Such a row is padding. A softmax of nothing would be NaN, and so would all that read it.
    """
    return logits.masked_fill(logits.isneginf().all(-1, keepdim=True), 0.0)


def _of_layer(layer: int, function: RowFunction, views: bool) -> Listener:
    def listener(call: AttentionCall) -> Tensor | None:
        return None if _undisturbed.get() and not views else function(layer, call)

    return listener
