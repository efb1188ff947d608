"""What `--query` costs: time of a pass over one without, bytes, maps a second, loss by rank, int8.

    OMP_NUM_THREADS=1 python -m benchmarks.query_cost --images FOLDER --architecture ViT-B-16

A CLIP of open_clip's true size with **random weights**: time, bytes and exactness do not depend on
them; how much of a map a rank keeps does, so that column belongs to the weights given with
`--weights`. Passes with and without are taken in pairs; a ratio is the median of the pairs'.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from shared.targets import TargetStore, TargetWriter
from shared.targets.identity import Identity, QueryIdentity
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.query import NAMES, query_maps
from shared.vocabulary import QueryHeads, QueryMethod
from teacher_cache.encoder import encode
from teacher_cache.query.readouts import with_readout
from teacher_cache.settings import Settings, identity_of
from teacher_cache.sources import find_images
from teacher_cache.stream import prepare
from teacher_cache.teachers.base import Teacher, TextTower
from teacher_cache.teachers.registry import load_teacher
from teacher_cache.teachers.trained import Trained
from teacher_cache.texts.basis import basis_in, terms
from teacher_cache.texts.towers import embed, load_text_tower

SAID = Trained((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", False)
RANKS = (16, 32, 64, 128)
KINDS: tuple[tuple[QueryMethod, QueryHeads], ...] = (
    ("grad-eclip", "published"),
    ("grad-eclip", "model"),
    ("maskclip", "published"),
    ("clearclip", "published"),
    ("sclip", "published"),
    ("textspan", "published"),
)
HELD = 200  # terms that the basis does not see, whose maps are compared


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--weights")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name, weights = f"open_clip:{args.architecture}", args.weights
        if weights is None:
            weights = random_weights(args.architecture, Path(folder) / "clip.pt")
        teacher = load_teacher(name, weights, said=SAID)
        tower = load_text_tower(name, weights, None, SAID)
        references = find_images(args.images, limit=args.count)
        ready = [prepare(one, teacher.preprocessing, "pad") for one in references]
        pixels = torch.stack([one for one, _ in ready])
        print(f"{name}, {teacher.grid.rows}x{teacher.grid.columns}, {len(pixels)} images\n")
        seen, held = split(tower)
        print("| method | rank | pass over one without | bytes an image | map's r, 5% lowest |")
        print("|---|---|---|---|---|")
        for method, heads in KINDS:
            for rank in RANKS if (method, heads) == KINDS[0] else (64,):
                query = query_of(teacher, method, heads, rank)
                row(teacher, pixels, [box for _, box in ready], query, seen, held, args.rounds)
        asking(teacher, pixels, [box for _, box in ready], seen, held, Path(folder) / "store")


def random_weights(architecture: str, file: Path) -> str:
    import open_clip

    torch.manual_seed(0)
    torch.save(open_clip.create_model(architecture).state_dict(), file)
    return str(file)


def split(tower: TextTower) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of the terms: those that span the basis, and every tenth held out."""
    every = np.random.default_rng(0).permutation(terms()[1])
    vectors = embed(tower, every.tolist())
    return vectors[HELD:], vectors[:HELD]


def query_of(teacher: Teacher, method: QueryMethod, heads: QueryHeads, rank: int) -> QueryIdentity:
    return QueryIdentity(
        method=method,
        heads=heads if method == "grad-eclip" else None,
        layers=4 if method == "textspan" else None,
        rank=rank,
        terms=1,
        text="0" * 64,
        grid=teacher.grid,
    )


def row(teacher, pixels, boxes, query, seen, held, rounds) -> None:  # type: ignore[no-untyped-def]
    basis = basis_in(seen, query.rank).matrix
    ready = with_readout(teacher, query, basis)
    ratios = []
    for _ in range(rounds):
        plain, asked = (timed(one, pixels) for one in (teacher, ready))
        ratios.append(asked / plain)
    whole = with_readout(teacher, query, np.eye(held.shape[1]))
    exact = encode(whole, pixels).query
    records = arrays_of(ready, pixels, boxes, query)
    stored = {name: np.stack([one[name] for one in records]) for name in NAMES}
    maps = query_maps(stored, held @ basis.astype(np.float32), query.grid, query.grid)
    wanted = np.maximum(exact.numpy() @ held.T, 0).transpose(0, 2, 1)
    alike = [
        np.corrcoef(first, second)[0, 1]
        for first, second in zip(
            *(one.reshape(-1, one.shape[2]) for one in (maps, wanted)), strict=True
        )
        if first.std() > 0 and second.std() > 0
    ]
    size = sum(one["query"].nbytes + one["query_scale"].nbytes for one in records) / len(records)
    heads = f" ({query.heads})" if query.heads else ""
    print(
        f"| {query.method}{heads} | {query.rank} | {statistics.median(ratios):.3f} | {size:,.0f} | "
        f"{np.mean(alike):.4f}, {np.quantile(alike, 0.05):.4f} |",
        flush=True,
    )


def timed(teacher: Teacher, pixels: torch.Tensor) -> float:
    begin = time.process_time()
    encode(teacher, pixels)
    return time.process_time() - begin


def arrays_of(teacher, pixels, boxes, query):  # type: ignore[no-untyped-def]
    encoded = encode(teacher, pixels)
    identity = asked_identity(teacher, query)
    return encode_targets(
        encoded.tokens, encoded.attention, boxes, teacher.grid, identity, encoded.query
    )


def asked_identity(teacher: Teacher, query: QueryIdentity) -> Identity:
    plain = identity_of(teacher, Settings(encoding="patches"))
    return Identity.model_validate({**plain.model_dump(), "query": query})


def asking(teacher, pixels, boxes, seen, held, place) -> None:  # type: ignore[no-untyped-def]
    """Print maps a second from a store: decompressed, one question an image and many."""
    query = query_of(teacher, "grad-eclip", "published", 64)
    basis = basis_in(seen, 64).matrix
    ready = with_readout(teacher, query, basis)
    records = arrays_of(ready, pixels, boxes, query)
    identity = asked_identity(teacher, query)
    keys = [number.to_bytes(32, "big") for number in range(256)]
    with TargetWriter(place, identity) as writer:
        for number, key in enumerate(keys):
            writer.add(key, records[number % len(records)])
    size = sum(file.stat().st_size for file in place.rglob("*/query/c/*/*/*"))
    store, asked = TargetStore.open(place), held @ basis.astype(np.float32)
    print(f"\n{size / len(keys):,.0f} bytes of `query` an image on disk, rank 64")
    for count, texts in (("one question an image", 1), (f"{len(held)} questions an image", HELD)):
        begin, made = time.process_time(), 0
        while time.process_time() - begin < 3:
            for start in range(0, len(keys), 32):
                part = store.arrays(keys[start : start + 32], NAMES)
                made += query_maps(part, asked[:texts], query.grid, query.grid)[:, :, 0].size
        print(f"{count}: {made / (time.process_time() - begin):,.0f} maps a second of one thread")


if __name__ == "__main__":
    main()
