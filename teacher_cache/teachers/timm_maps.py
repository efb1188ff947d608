"""Any timm tower with a square map at its end, for S_e alone: windows, convolutions, no CLS token.

E_v is the last stage's map before any final norm, as timm's own `forward_intermediates` gives it:
one patch a place.

B images of a batch, M places of the map, b its channels.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from shared.imaging.grid import Grid


class _Tower(Protocol):
    """What is read of timm's models."""

    pretrained_cfg: Mapping[str, object]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int,
        norm: bool,
        output_fmt: str,
        intermediates_only: bool,
    ) -> list[Tensor]:
        """Return the last `indices` maps (B, b, rows, columns)."""


class TimmMap(nn.Module):
    """A timm model whose last map is its output."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the places of the last map, (B, M, b)."""
        return _last_map(self.tower, pixels).flatten(2).transpose(1, 2)


def _last_map(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Return the last stage's map before any final norm, (B, b, rows, columns)."""
    found = cast("_Tower", tower).forward_intermediates(
        pixels, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True
    )
    return found[-1]


class Map(NamedTuple):
    """The last map's grid, and the side of the images that it is of."""

    grid: Grid
    size: int


def map_of(tower: nn.Module) -> Map | str:
    """Return the grid of a model's last map; why there is none that targets can be made of, else.

    Parameters
    ----------
    tower
        A timm model on the meta device, where a pass costs nothing.
    """
    sides = input_sides(tower)
    if len(set(sides)) != 1:
        return "does not see squares"
    if not hasattr(tower, "forward_intermediates"):
        return "gives no map of its last stage"
    pixels = torch.zeros(1, 3, *sides, device="meta")
    try:
        with torch.inference_mode():
            shape = _last_map(tower.eval(), pixels).shape
    except Exception as error:  # a model fails wherever it needs values or another input
        return f"gives no map of its last stage ({' '.join(str(error).split())[:120]})"
    rows, columns = shape[2:]
    if rows != columns or rows < 2 or sides[0] % rows:
        return f"ends in a map of {rows}x{columns}, which is no grid of equal patches of its image"
    return Map(Grid(rows, columns), sides[0])


def input_sides(tower: nn.Module) -> tuple[int, ...]:
    """Return height and width of a timm model's input."""
    embedding = getattr(tower, "patch_embed", None)
    fixed = getattr(embedding, "img_size", None)
    if fixed is None:
        fixed = cast("tuple[int, ...]", cast("_Tower", tower).pretrained_cfg["input_size"])[1:]
    return tuple(int(side) for side in fixed)
