"""What a teacher is: a frozen encoder, its grid, its preprocessing, the hash of its weights."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from shared.errors import UserError
from shared.hub import offline_if_unreachable
from shared.imaging.grid import Grid
from shared.targets import Preprocessing
from shared.vocabulary import PoolingAttention
from teacher_cache.teachers.trained import Trained


class TeacherInfo(NamedTuple):
    """One line of `cache teachers`: what its published weights are, or an open family.

    Attributes
    ----------
    grid
        Patches at the pixels of its input, `24x24 @ 336`; None of a family, as the next two.
    width
        b of its patch tokens.
    text_tower
        Of the same release; `no` where it has none.
    gated
        Whether the hub gives the weights only to who has accepted their terms.
    """

    name: str
    architecture: str
    source: str
    licence: str
    grid: str | None = None
    width: int | None = None
    text_tower: str | None = None
    gated: bool | None = None


class TextTower(NamedTuple):
    """A teacher's text encoder.

    Attributes
    ----------
    weights
        sha256 over its tensors and its tokenizer's vocabulary.
    width
        c of its embeddings.
    encode
        Prompts in their normal form -> (n, c), not yet of length 1.
    """

    teacher: str
    architecture: str
    weights: str
    width: int
    encode: Callable[[Sequence[str]], Tensor]


class Readout(Protocol):
    """What is read of the last blocks, linear in a text: `teacher_cache.query`."""

    depth: int  # of the last blocks, whose inputs are wanted

    def __call__(self, entering: Sequence[Tensor], leaving: Tensor) -> Tensor:
        """Return R B (B, M, r) of the blocks' inputs (B, T, b) and the last one's output."""


class Teacher(NamedTuple):
    """A frozen vision encoder in evaluation mode.

    Attributes
    ----------
    model
        open_clip's `VisionTransformer` or timm's; called on pixels (B, 3, size, size).
    grid
        Its own patch grid, M patches.
    weights
        sha256 over its tensors.
    project
        Final norm and projection of patch tokens, (B, M, b) -> (B, M, c), for `--features
        projected`; None without one.
    attention
        `none`: only its tokens are wanted.
    projection
        The matrix (b, c) of `project`, after its norm; None without one.
    readout
        What `--query` reads of its last blocks; None without.
    """

    name: str
    architecture: str
    model: nn.Module
    grid: Grid
    preprocessing: Preprocessing
    weights: str
    licence: str
    project: Callable[[Tensor], Tensor] | None = None
    attention: PoolingAttention = "pooled"
    projection: Tensor | None = None
    readout: Readout | None = None


# How a named teacher is loaded (its line, --weights, the targets' grid), and one of an open family
# (the full name, what follows the colon, --weights, what the command line says of them, whether
# E_a is wanted).
Loader = Callable[[TeacherInfo, str | None, Grid | None], Teacher]
FamilyLoader = Callable[[str, str, str | None, Trained, PoolingAttention], Teacher]


def need_weights(info: TeacherInfo, weights: str | None) -> str:
    """Return `weights`, or say where those of a teacher that brings none are to be had."""
    if weights is None:
        raise UserError(
            f"teacher {info.name} needs its weights: get {info.source} and pass --weights FILE "
            "(a local copy, its folder, or a hub id)"
        )
    return weights


def downloaded(name: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Load a registry's own weights; what the network or the registry says becomes one line."""
    answers = offline_if_unreachable()
    logging.disable(logging.ERROR)  # what it says of a failure comes as one line
    try:
        return load()
    except Exception as error:  # hub, network and registry errors share no base
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        reason = said if answers else "the hub does not answer, and its cache lacks them"
        raise UserError(
            f"the weights of {name} could not be fetched ({reason}): "
            "get them elsewhere and pass --weights FILE"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
