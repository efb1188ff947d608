"""What a real run needs, estimated without a GPU: memory and hours by model, rank and batch.

`python -m benchmarks.real_run` prints the table of docs/scale.md. Memory is the sum of four counts:

- frozen weights in bfloat16 at the model's full size, vision tower and projector included;
- trained parameters: float32 value, gradient and AdamW's two moments, as `--dry-run` counts;
- activations that autograd keeps in one three-term step under bfloat16 autocast, counted in this
  package's own step at the model's true width with 2 and 3 decoder layers and carried to all by
  their slope (with checkpointing: a layer's input each, and one layer whole);
- the largest temporary: the logits of the labelled rows in float32, twice.

Hours are floating-point operations over a share of the card's peak: 4 per parameter and token (two
forward, two backward, since frozen weights get no gradient), 6 with checkpointing.

d decoder width, T tokens of a sample.
"""

from typing import Any, NamedTuple

import torch

from benchmarks.training_arms import ANSWER, TEXT, batch_of, build
from student_train.run.terms import term_sums

TOKENS = 576 + TEXT
PEAK, SHARE = 989e12, 0.4  # H100 SXM, dense bfloat16; the part of it that is assumed to be reached
SAMPLES = 10_000
WORDS = 1024
GIB = float(1 << 30)


class Model(NamedTuple):
    """A decoder's published sizes; `tower`: parameters of vision tower and projector."""

    name: str
    layers: int
    width: int
    heads: int
    groups: int
    inner: int
    vocabulary: int
    tower: int

    @property
    def decoder(self) -> int:
        """Parameters of the decoder with both tables."""
        head = self.width // self.heads
        attention = self.width * head * (2 * self.heads + 2 * self.groups)
        layer = attention + 3 * self.width * self.inner
        return self.layers * layer + 2 * self.vocabulary * self.width


MODELS = (
    Model("LLaVA-Med-1.5 (7B)", 32, 4096, 32, 8, 14336, 32064, 325_000_000),
    Model("HuatuoGPT-Vision-7B", 28, 3584, 28, 4, 18944, 152064, 320_000_000),
)
RANKS, BATCHES = (16, 32, 128), (1, 8)


def kept(model: Model, layers: int, arm: str) -> int:
    """Bytes that autograd keeps of a step's forward pass, weights left out."""
    # few words: the logits are counted apart
    sizes = model._asdict() | {"layers": layers, "patches": 576, "vocabulary": WORDS}
    wanted = ("layers", "width", "heads", "groups", "inner", "vocabulary", "patches")
    student, recipe, _ = build(arm, **{name: sizes[name] for name in wanted}, precision="bf16")
    weights = {one.untyped_storage().data_ptr() for one in student.model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = batch_of(1, WORDS, 576)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        terms = term_sums(student.model, student.channel, batch, recipe)
    assert torch.isfinite(terms.sums).all()  # the graph, and so each storage, lives until here
    return sum(found.values())


def trained(model: Model, rank: int) -> int:
    """Parameters of LoRA on every linear layer of the decoder, and of W."""
    head = model.width // model.heads
    wide, narrow = model.heads * head, model.groups * head
    d, inner = model.width, model.inner
    ends = 2 * (d + wide) + 2 * (d + narrow) + 3 * (d + inner)
    return model.layers * rank * ends + d * d


def rows(model: Model) -> list[dict[str, Any]]:
    """Estimate every rank, batch and checkpointing of a model."""
    two, three = (kept(model, layers, "medalign") for layers in (2, 3))
    low, high = (kept(model, layers, "checkpointed") for layers in (2, 3))
    layer = three - two
    activations = {
        False: two + (model.layers - 2) * layer,
        True: low + (model.layers - 2) * (high - low) + layer,
    }
    frozen = 2 * (model.decoder + model.tower)
    found = []
    for rank in RANKS:
        for batch in BATCHES:
            row: dict[str, Any] = {"model": model.name, "rank": rank, "batch": batch}
            states = 16 * trained(model, rank)
            logits = 2 * 4 * batch * ANSWER * model.vocabulary
            for again in (False, True):
                total = frozen + states + batch * activations[again] + logits
                work = (6 if again else 4) * (model.decoder + model.tower) * TOKENS * SAMPLES
                row[f"GiB{' checkpointed' if again else ''}"] = total / GIB
                row[f"hours{' checkpointed' if again else ''}"] = work / (PEAK * SHARE) / 3600
            found.append(row)
    return found


def main() -> None:
    """Print the table in Markdown."""
    print("| model | LoRA rank | batch | GiB | GiB, checkpointing | hours | hours, checkpointing |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for row in rows(model):
            print(
                f"| {row['model']} | {row['rank']} | {row['batch']} | {row['GiB']:.0f} "
                f"| {row['GiB checkpointed']:.0f} | {row['hours']:.2f} "
                f"| {row['hours checkpointed']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
