"""The two alignment losses of MEDALIGN (Eq. 3 to 5), on plain tensors.

Everything is computed in float32.

Both take one row per image and are means over the images. The training step needs sums instead (it
divides by the images of the whole optimiser step, which may be several micro-batches on several
ranks): `visual_alignment_terms` and `attention_alignment_terms` give one value per image.

P images, N patches, d student width: `images`, `patches`, `width` in the shapes below.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from shared.recipe.fields import AttentionNormalization
from shared.targets.numbers.triangle import places_of, triangle_length


def visual_alignment_loss(
    tokens: Float[Tensor, "images patches width"],
    similarity: Float[Tensor, "images pairs"],
    coverage: Shaped[Tensor, "images patches"] | None = None,
) -> Float[Tensor, ""]:
    """L_vis (Eq. 3, 4).

    Mean over the N x N entries of (S_e - S_x)^2, S_x the cosine similarities of `tokens`.

    Parameters
    ----------
    tokens
        Rotated image tokens X' that enter layer l, one row per patch, width d.
    similarity
        The teacher's S_e as its strict upper triangle in row-major order, pairs = N(N-1)/2.
    coverage
        Share of each patch that shows image; patches of coverage 0 leave the loss, which then is
        the sum over visible pairs i != j divided by (number of visible patches)^2.

    Raises
    ------
    ValueError
        Where the triangle does not belong to this number of patches.
    """
    return visual_alignment_terms(tokens, similarity, coverage).mean()


def attention_alignment_loss(
    student: Float[Tensor, "images patches"],
    teacher: Float[Tensor, "images patches"],
    normalization: AttentionNormalization = "renormalized",
    coverage: Shaped[Tensor, "images patches"] | None = None,
) -> Float[Tensor, ""]:
    """L_att (Eq. 5): KL(teacher || student) over the N image patches.

    Parameters
    ----------
    student
        Layer l's softmax attention, mean over heads and question rows, image columns only; raw
        weights.
    teacher
        The teacher's CLS attention on the same patches; raw weights, any scale.
    normalization
        `renormalized`: both divided by their sum. `softmax`: Eq. 5 to the letter, softmax over the
        raw weights, the teacher's divided by their maximum first. `l2`: the authors' code, both
        divided by their Euclidean norm and the sum divided by N; no divergence, can be negative.
    coverage
        Share of each patch that shows image; patches of coverage 0 leave the loss, and both vectors
        are normalised over the visible ones.

    Raises
    ------
    ValueError
        An unknown normalization.
    """
    return attention_alignment_terms(student, teacher, normalization, coverage).mean()


def visual_alignment_terms(
    tokens: Float[Tensor, "images patches width"],
    similarity: Float[Tensor, "images pairs"],
    coverage: Shaped[Tensor, "images patches"] | None = None,
) -> Float[Tensor, " images"]:
    """L_vis of each image; arguments as in `visual_alignment_loss`."""
    patches = tokens.shape[1]
    pairs = triangle_length(patches)
    if similarity.shape[1] != pairs:
        raise ValueError(
            f"{patches} patches have {pairs} pairs, but the targets hold {similarity.shape[1]}"
        )
    with torch.autocast(tokens.device.type, enabled=False):
        products: Tensor = _Gram.apply(tokens.float())
        # Scaled by the norms here, on N x N numbers: normalising the N x d tokens would copy them,
        # forward and back.
        scale = products.diagonal(dim1=1, dim2=2).clamp_min(1e-24).rsqrt()
        cosines = (products * scale.unsqueeze(2) * scale.unsqueeze(1)).flatten(1)
        index = _triangle_index(patches, tokens.device).expand(len(tokens), -1)
        squares = (cosines.gather(1, index) - similarity.float()).square()
        # Both diagonals are 1, so the N x N mean is twice the strict triangle's sum over N^2.
        if coverage is None:
            return squares.sum(1) * (2.0 / patches**2)
        visible = (coverage > 0).float()
        both = (visible.unsqueeze(2) * visible.unsqueeze(1)).flatten(1).gather(1, index)
        return 2.0 * (squares * both).sum(1) / visible.sum(1).clamp_min(1.0).square()


def attention_alignment_terms(
    student: Float[Tensor, "images patches"],
    teacher: Float[Tensor, "images patches"],
    normalization: AttentionNormalization = "renormalized",
    coverage: Shaped[Tensor, "images patches"] | None = None,
) -> Float[Tensor, " images"]:
    """L_att of each image; arguments as in `attention_alignment_loss`."""
    student, teacher = student.float(), teacher.float()
    visible = torch.ones_like(student, dtype=torch.bool) if coverage is None else coverage > 0
    student, teacher = student * visible, teacher * visible
    if normalization == "renormalized":
        q, p = _divide(teacher, teacher.sum(1)), _divide(student, student.sum(1))
        return _relative_entropy(q, p, visible)
    if normalization == "softmax":
        hidden = ~visible
        scaled = _divide(teacher, teacher.amax(1)).masked_fill(hidden, -torch.inf)
        log_q = functional.log_softmax(scaled, dim=1).masked_fill(hidden, 0.0)
        log_p = functional.log_softmax(student.masked_fill(hidden, -torch.inf), dim=1).masked_fill(
            hidden, 0.0
        )
        return (log_q.exp() * (log_q - log_p)).masked_fill(hidden, 0.0).sum(1)
    if normalization == "l2":
        q, p = _divide(teacher, teacher.norm(dim=1)), _divide(student, student.norm(dim=1))
        return _relative_entropy(q, p, visible) / visible.sum(1).clamp_min(1)
    raise ValueError(f"attention normalization `{normalization}`; known: renormalized, softmax, l2")


class _Gram(torch.autograd.Function):
    """X X^T of rows (P, N, d).

    Backward takes one product, (G + G^T) X, where autograd would take two of that size.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return torch.bmm(rows, rows.transpose(1, 2))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.bmm(gradient + gradient.transpose(1, 2), rows)


def _divide(values: Tensor, scale: Tensor) -> Tensor:
    return values / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)


def _relative_entropy(q: Tensor, p: Tensor, visible: Tensor) -> Tensor:
    """Sum of q (log q - log p) over visible patches.

    0 log 0 is 0, and an underflown p counts as the smallest float.
    """
    tiny = torch.finfo(torch.float32).tiny
    terms = torch.xlogy(q, q.clamp_min(tiny)) - q * p.clamp_min(tiny).log()
    return terms.masked_fill(~visible, 0.0).sum(1)


@lru_cache(maxsize=8)
def _triangle_index(patches: int, device: torch.device) -> Tensor:
    """Places of the store's triangle in a flattened (N, N) matrix."""
    return torch.from_numpy(places_of(patches)).to(device)
