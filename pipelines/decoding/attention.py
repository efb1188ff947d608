"""The language model's attention while it decodes: read the newest tokens' rows, or change one.

B rows of a batch, H heads, T tokens so far.

The tap itself is `student_train.kernel`; the training-time tap of layer l stays underneath.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from torch import Tensor

from student_train.imagetext import ImageTextModel
from student_train.kernel import AttentionCall, Listener, tap

# (layer, call) -> changed logits (B, H, 1, T) of the newest row, or None to leave it alone
RowFunction = Callable[[int, AttentionCall], Tensor | None]

_undisturbed: ContextVar[bool] = ContextVar("undisturbed", default=False)


@contextmanager
def watching(model: ImageTextModel, layers: Iterable[int], function: RowFunction) -> Iterator[None]:
    """Call `function` in every attention call of `layers` inside the block."""
    blocks = model.get_decoder().layers
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(tap(blocks[layer].self_attn, _of_layer(layer, function)))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every row alone inside the block (the contrast pass within a watched generation)."""
    token = _undisturbed.set(True)
    try:
        yield
    finally:
        _undisturbed.reset(token)


def _of_layer(layer: int, function: RowFunction) -> Listener:
    def listener(call: AttentionCall) -> Tensor | None:
        return None if _undisturbed.get() else function(layer, call)

    return listener
