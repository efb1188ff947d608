"""Pickles of arrays from outside, opened without the power to run code.

A pickle is a program: it names functions and has them called. Here no name leads to a function of
numpy or torch. Each of the few that arrays need leads to a stand-in of this file, which takes
numbers and bytes alone; any other name is refused.
"""

import io
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import refused_as

_NUMBERS = re.compile("[<>=|]?[?biuf][1-8]?")  # numpy's letters of numbers; O is any object


class _Refused(Exception):
    """Why a pickle is not opened."""


class _Named:
    """What a name of a pickle leads to: a stand-in that can be called and not be changed."""

    __slots__ = ("_call",)
    _call: Callable[..., object]

    def __init__(self, call: Callable[..., object]) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused(f"it wants to change {name} of a function")

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)


class _Kind:
    """Stands for a numpy dtype of numbers."""

    __slots__ = ("numbers",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _Refused(f"it holds an array of {code!r}, not of numbers")
        self.numbers = np.dtype(code)

    def __setstate__(self, state: Sequence[object]) -> None:
        order, plain = state[1], all(one is None for one in state[2:5])
        if order not in ("<", ">", "=", "|") or not plain:
            raise _Refused("it holds an array of records, not of numbers")
        self.numbers = self.numbers.newbyteorder(">" if order == ">" else "<")


class _Array:
    """Stands for a numpy array that is being made."""

    __slots__ = ("values",)
    values: NDArray[np.generic]

    def __setstate__(self, state: Sequence[object]) -> None:
        shape, kind, by_columns, data = state[-4:]
        self.values = _filled(data, kind, shape, "F" if by_columns else "C")


def _filled(data: object, kind: object, shape: object, order: str) -> NDArray[np.generic]:
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Kind):
        raise _Refused("it holds an array of objects, not of numbers")
    sides = cast("tuple[int, ...]", shape)
    flat: NDArray[np.generic] = np.frombuffer(data, kind.numbers)
    return flat.reshape(sides, order="F" if order == "F" else "C")


def _empty(*_: object) -> _Array:
    return _Array()


def _of_buffer(
    data: object, kind: object, shape: object, order: object, axes: Sequence[int] | None = None
) -> _Array:
    """As numpy's `_frombuffer`, of protocol 5."""
    made = _Array()
    made.values = _filled(data, kind, shape, "F" if order == "F" else "C")
    if order == "K" and axes is not None:
        made.values = made.values.transpose(axes)
    return made


def _no_bytes(*arguments: object) -> bytes:
    """As `bytes()`, which older protocols write for none."""
    if arguments:
        raise _Refused("it wants to make bytes of something")
    return b""


def _latin(text: object, code: object) -> bytes:
    """As `_codecs.encode` where older protocols write bytes as text."""
    if code != "latin1" or not isinstance(text, str):
        raise _Refused("it holds bytes in another code than latin1")
    return text.encode("latin1")


def _storage(data: object) -> object:
    """As torch's `_load_from_bytes`, by torch's own reader of weights alone."""
    import torch

    if not isinstance(data, bytes):
        raise _Refused("a tensor without bytes")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(
    storage: object, offset: int, shape: Sequence[int], stride: Sequence[int], *_: object
) -> _Array:
    """As torch's `_rebuild_tensor_v2`, without hooks."""
    import torch
    from torch.storage import TypedStorage

    if not isinstance(storage, TypedStorage):
        raise _Refused("a tensor without numbers")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        bits = storage.untyped()  # type: ignore[no-untyped-call]
        flat = torch.empty(0, dtype=storage.dtype).set_(bits)
    view = flat.as_strided(tuple(shape), tuple(stride), offset)  # torch refuses what lies outside
    made = _Array()
    made.values = (view.float() if view.dtype == torch.bfloat16 else view).contiguous().numpy()
    return made


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _empty,
    ("numpy", "dtype"): _Kind,
    ("numpy._core.numeric", "_frombuffer"): _of_buffer,
    ("numpy.core.numeric", "_frombuffer"): _of_buffer,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("_codecs", "encode"): _latin,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): lambda *_: {},  # of a tensor's hooks
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NAMES:
            raise _Refused(f"it wants to load {module}.{name}")
        return _Named(_NAMES[module, name])

    def persistent_load(self, identifier: object) -> object:
        raise _Refused("it refers to data outside itself")


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Open a pickle of a dictionary of text to arrays, of numpy or of torch on any device.

    The whole file is in memory, as its writer made it.

    Raises
    ------
    UserError
        The file is not there, or holds anything else; nothing of it was run.
    """
    with refused_as(f"cannot read {path}"), path.open("rb") as file:
        try:
            found = _Arrays(file).load()
            if not isinstance(found, dict):
                raise _Refused(f"it holds {type(found).__name__}")
            return {_text(name): _values(value) for name, value in found.items()}
        except OSError as error:
            if error.errno is not None:
                raise
            reason = str(error)
        except Exception as error:  # a broken pickle surfaces as many kinds of errors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
        f"{path} was not opened: {reason}; only a dictionary of names to arrays of numbers is read"
    )


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise _Refused(f"a name is {type(name).__name__}, not text")
    return name


def _values(value: object) -> NDArray[np.generic]:
    if not isinstance(value, _Array):
        raise _Refused(f"it holds {type(value).__name__} where an array is expected")
    return value.values
