"""What `medalign student train` hands to the trainer, which imports neither teacher nor metric.

Both as callables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from shared.errors import UserError
from shared.imaging.images import ImageReference
from shared.recipe import Recipe
from shared.records import Record
from shared.targets import Target

LOSS = "eval_loss"


def target_computer(
    recipe: Recipe,
) -> Callable[[Sequence[ImageReference]], Iterator[Target]] | None:
    """Return what computes images' targets as the recipe's store would hold them.

    For `targets.on_missing: compute`. The teacher is the one that filled the store's namespace,
    checked by fingerprint, on `targets.device`. None where the recipe does not ask for it; the
    teacher is loaded for the first missing image and gone after the last.

    Raises
    ------
    UserError
        Several teachers or a `factors` store (`cache build` serves both), or weights other than the
        store's.
    """
    section = recipe.targets
    if section.on_missing != "compute" or section.store is None or not recipe.losses.aligned:
        return None
    if isinstance(section.teacher, list) or isinstance(section.fingerprint, list):
        raise UserError(
            "targets.on_missing=compute serves one teacher; run `cache build` for several"
        )
    store, teacher, fingerprint = section.store, section.teacher, section.fingerprint

    def compute(references: Sequence[ImageReference]) -> Iterator[Target]:
        yield from map(
            _load(store, teacher, fingerprint, section.weights, section.device), references
        )

    return compute


def _load(
    store: str, teacher: str | None, fingerprint: str | None, weights: str | None, device: str
) -> Callable[[ImageReference], Target]:
    from shared.imaging.pixels import UnreadableImage
    from shared.processes import choose_device
    from shared.targets import TargetStore
    from shared.targets.numbers.encodings import encode_targets
    from teacher_cache.encoder import encode
    from teacher_cache.settings import DTYPES, load_of
    from teacher_cache.stream import prepare

    identity = TargetStore.open(store, teacher, fingerprint).identity.without_query()
    if identity.encoding != "matrix":
        raise UserError(
            "targets.on_missing=compute adds to `matrix` stores only; run `cache build` for this "
            "one"
        )
    place = choose_device(device)
    loaded = load_of(identity, weights, place, "targets.weights")

    def compute(reference: ImageReference) -> Target:
        try:
            pixels, box = prepare(reference, loaded.preprocessing, identity.geometry)
        except UnreadableImage as error:
            raise UserError(f"{reference} cannot be read: {error}") from None
        batch = pixels.unsqueeze(0).to(device=place, dtype=DTYPES[identity.dtype])
        encoded = encode(loaded, batch, identity.features)
        [record] = encode_targets(encoded.tokens, encoded.attention, [box], loaded.grid, identity)
        return Target(record["similarity"], record.get("attention"), record["coverage"])

    return compute


def scorer(
    recipe: Recipe,
) -> Callable[[Sequence[Record], Sequence[str]], Mapping[str, float]] | None:
    """Return what rates the answers of an evaluation, where `train.best_metric` is a score.

    None otherwise.

    Its scores are those of `medalign evaluate`, means over the records that have them, such as
    `closed_accuracy`.

    Raises
    ------
    UserError
        A name that is no score.
    """
    from pipelines.metrics.items import SCORES, item_scores

    wanted = recipe.train.best_metric
    if wanted is None or wanted == LOSS:
        return None
    if wanted.removeprefix("eval_") not in SCORES:
        raise UserError(
            f"train.best_metric={wanted} is no score; there are {LOSS}, {', '.join(SCORES)}"
        )

    def score(records: Sequence[Record], answers: Sequence[str]) -> Mapping[str, float]:
        rows = [
            item_scores(record, answer) for record, answer in zip(records, answers, strict=True)
        ]
        values = {name: [row[name] for row in rows if name in row] for name in SCORES}
        return {name: sum(column) / len(column) for name, column in values.items() if column}

    return score
