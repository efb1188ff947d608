"""A fixed rotation of channels, which spreads the few large ones before values become int8.

A row of E_v has channels that are ten times the others: against its largest value, int8 leaves the
rest few steps. After a Walsh-Hadamard rotation all channels are alike (docs/performance-store.md
has both measured). It is orthogonal, so that S needs no turning back.

N patches or any leading axes, b teacher width.
"""

import hashlib

import numpy as np
from jaxtyping import Float


def rotate(values: Float[np.ndarray, "*N b"]) -> Float[np.ndarray, "*N b"]:
    """Flip signs, then transform blocks of 2^k channels, the largest that divide b.

    The sign of channel i is - where bit i % 8 of byte i // 8 of SHAKE-128("medalign rotation 1") is
    set.
    """
    turned: Float[np.ndarray, "*N b"] = _hadamard(values * signs(values.shape[-1]))
    return turned


def rotate_back(values: Float[np.ndarray, "*N b"]) -> Float[np.ndarray, "*N b"]:
    """Undo `rotate`: the transform is its own inverse."""
    back: Float[np.ndarray, "*N b"] = _hadamard(values) * signs(values.shape[-1])
    return back


def signs(width: int) -> Float[np.ndarray, " b"]:
    """Return +1 or -1 for each channel, (b,)."""
    data = hashlib.shake_128(b"medalign rotation 1").digest((width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:width]
    return 1.0 - 2.0 * bits.astype(np.float32)


def _hadamard(values: Float[np.ndarray, "*N b"]) -> Float[np.ndarray, "*N b"]:
    """Multiply each block of 2^k channels by the orthonormal Hadamard matrix (Sylvester)."""
    width = values.shape[-1]
    block = width & -width
    folded = values.reshape(-1, block)
    half = 1
    while half < block:
        pairs = folded.reshape(-1, block // (2 * half), 2, half)
        folded = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
        half *= 2
    scaled = folded.reshape(values.shape) / np.sqrt(np.float32(block))
    turned: Float[np.ndarray, "*N b"] = scaled.astype(values.dtype)
    return turned
