"""Size, encoding and decoding time of codec chains over targets of real images.

Why layout.py has the chains it has.

    OMP_NUM_THREADS=1 python -m benchmarks.store_codecs

Every chain ends in the checksum that the store uses. Times are CPU time per record, one thread,
best of three passes.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numcodecs import Blosc, Delta, Shuffle, Zstd

from benchmarks.real_features import Features, real_features
from shared.imaging.grid import Grid
from shared.targets.identity import Identity, Preprocessing
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.factors import InaccurateFactors
from shared.targets.numbers.rotation import rotate
from shared.targets.segment.chunks import decode_chunk, encode_chunk
from shared.targets.segment.layout import CRC32C, ArraySpec, arrays_of
from shared.vocabulary import Encoding, Precision

GRID = Grid(24, 24)
MIB = 2**20


def identity(encoding: Encoding, precision: Precision, grid: Grid) -> Identity:
    return Identity(
        teacher="dinov2-small",
        architecture="vit_small_patch14_dinov2",
        weights="0" * 64,
        preprocessing=Preprocessing(size=14 * grid.rows, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        encoding=encoding,
        precision=precision,
        grid=(grid.rows, grid.columns),
        tolerance=0.01 if encoding == "factors" else None,
        width=384 if encoding == "patches" else None,
        rotation="hadamard" if encoding == "patches" else None,
    )


def records_of(
    features: Features, encoding: Encoding, precision: Precision
) -> tuple[Identity, list[Arrays]]:
    """Encode image by image, as a build does.

    One whose factors cannot keep the tolerance is told and left out.
    """
    kind = identity(encoding, precision, features.grid)
    records: list[Arrays] = []
    for i in range(len(features.boxes)):
        one = slice(i, i + 1)
        try:
            records += encode_targets(
                features.tokens[one],
                features.attention[one],
                features.boxes[one],
                features.grid,
                kind,
            )
        except InaccurateFactors as error:
            print(
                f"\nimage {i + 1} of {len(features.boxes)} at {features.grid}, {precision}, is "
                f"refused: {error}"
            )
    return kind, records


def bench(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], arrays: list[Any]
) -> tuple[float, ...]:
    """Mean bytes, and best-of-three encoding and decoding time per record in milliseconds."""
    best = [float("inf"), float("inf")]
    for _ in range(3):
        start = time.process_time()
        encoded = [encode(values) for values in arrays]
        middle = time.process_time()
        for data in encoded:
            decode(data)
        end = time.process_time()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    count = len(arrays)
    return sum(map(len, encoded)) / count, best[0] / count * 1e3, best[1] / count * 1e3


def chain(*codecs: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Codec objects of numcodecs, applied in order, closed by the store's crc32c."""
    plain = ArraySpec("chunk", np.dtype("u1"), (), False, (CRC32C,), ("byte",))

    def encode(values: Any) -> bytes:
        for codec in codecs:
            values = codec.encode(values)
        return encode_chunk(np.frombuffer(values, np.uint8), plain)

    def decode(data: bytes) -> Any:
        out = np.empty(len(data) - 4, np.uint8)
        decode_chunk(data, plain, out)
        values: Any = out
        for codec in reversed(codecs):
            values = codec.decode(values)
        return values

    return encode, decode


def candidates(element: int) -> dict[str, tuple[Any, ...]]:
    shuffles = {"Shuffle": Shuffle(element)} if element > 1 else {"Delta": Delta("u1")}
    chains: dict[str, tuple[Any, ...]] = {"none": ()}
    for level in (1, 3, 6):
        chains[f"Zstd {level}"] = (Zstd(level),)
        for name, first in shuffles.items():
            chains[f"{name}, Zstd {level}"] = (first, Zstd(level))
        first_of = () if element > 1 else (Delta("u1"),)
        label = "" if element > 1 else "Delta, "
        chains[f"{label}Blosc zstd {level}, bit shuffle"] = (
            *first_of,
            Blosc("zstd", level, Blosc.BITSHUFFLE, typesize=element),
        )
    chains["Blosc lz4 5, bit shuffle" if element > 1 else "Delta, Blosc lz4 5, bit shuffle"] = (
        *(() if element > 1 else (Delta("u1"),)),
        Blosc("lz4", 5, Blosc.BITSHUFFLE, typesize=element),
    )
    return chains


def table(title: str, arrays: list[Any], element: int) -> None:
    print(
        f"\n### {title}\n\n| chain | bytes per record | encode ms | decode ms |\n|---|---|---|---|"
    )
    for name, codecs in candidates(element).items():
        size, encode, decode = bench(*chain(*codecs), arrays)
        print(f"| {name} | {size:,.0f} | {encode:.2f} | {decode:.2f} |")


def totals(rows: list[tuple[str, Identity, list[Arrays]]]) -> None:
    print("\n### Whole records as the store writes them\n")
    print(
        "| encoding | bytes per image | of float32 squares | encode ms | decode ms "
        "|\n|---|---|---|---|---|"
    )
    for name, kind, records in rows:
        size = encode = decode = 0.0
        for spec in arrays_of(kind):
            if spec.name == "key":
                continue
            arrays = [record[spec.name] for record in records]
            shape_of = {id(values): values.shape for values in arrays}
            one = bench(partial(encode_chunk, spec=spec), lambda data: data, arrays)
            encoded = [encode_chunk(values, spec) for values in arrays]
            outs = [np.empty(shape_of[id(values)], spec.dtype) for values in arrays]
            start = time.process_time()
            for data, out in zip(encoded, outs, strict=True):
                decode_chunk(data, spec, out)
            size, encode = size + one[0], encode + one[1]
            decode += (time.process_time() - start) / len(arrays) * 1e3
        print(
            f"| {name} | {size:,.0f} | {size / (576 * 576 * 4):.3f} | {encode:.2f} | {decode:.2f} |"
        )


def rotation(features: Features) -> None:
    """Int8 of E_v as it is and behind the rotation: bytes, and the error of S and of E_v."""
    print("\n| channels | bytes | largest error of S | error of E_v |\n|---|---|---|---|")
    tokens = features.tokens.double().numpy()
    for name, turned in (("as they are", tokens), ("rotated", rotate(tokens))):
        size, similarity, own = 0, 0.0, 0.0
        for exact in turned:
            scale = np.abs(exact).max(1, keepdims=True) / 127
            values = np.rint(exact / scale).astype(np.int8)
            size += len(Zstd(1).encode(values.tobytes()))
            off = values * scale - exact
            own += float(np.linalg.norm(off) / np.linalg.norm(exact)) / len(turned)
            unit, restored = (
                x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, exact + off)
            )
            similarity = max(similarity, float(np.abs(unit @ unit.T - restored @ restored.T).max()))
        print(f"| {name} | {size / len(turned):,.0f} | {similarity:.4f} | {own:.4f} |")


def main() -> None:
    features = real_features(GRID)
    print(f"{len(features.boxes)} real images, teacher dinov2-small at 24x24")
    exact, exact_records = records_of(features, "matrix", "f16")
    coarse, coarse_records = records_of(features, "matrix", "u8")
    small, small_records = records_of(features, "factors", "u8")
    half, half_records = records_of(features, "factors", "f16")
    table("similarity, float16", [record["similarity"] for record in exact_records], 2)
    codes = [
        np.rint((record["similarity"].astype(np.float32) + 1) * 127.5).astype(np.uint8)
        for record in coarse_records
    ]
    table("similarity, 256 steps", codes, 1)
    table("factors, int8", [record["factors"].view(np.uint8) for record in small_records], 1)
    transposed = [
        np.ascontiguousarray(record["factors"].T).view(np.uint8) for record in small_records
    ]
    table("factors, int8, component-major", transposed, 1)
    table("factors, float16", [record["factors"] for record in half_records], 2)
    rows = [
        ("`matrix` f16", exact, exact_records),
        ("`matrix` u8", coarse, coarse_records),
        ("`factors` u8 (int8), tolerance 0.01", small, small_records),
        ("`factors` f16, tolerance 0.01", half, half_records),
        ("`patches` u8 (int8)", *records_of(features, "patches", "u8")),
    ]
    rotation(features)
    # A 14x14 teacher is a ViT-B/16 at 224 pixels; of those no weights come in a package, so the
    # ViT-S/14 stands in.
    for native in (Grid(14, 14), Grid(28, 28)):
        features = real_features(native)
        for precision in ("u8", "f16"):
            name = f"`factors` {precision} of a {native} teacher"
            rows.append((name, *records_of(features, "factors", precision)))
    totals(rows)
    for name, kind, records in rows:
        if kind.encoding == "factors":
            ranks = [int(record["rank"]) for record in records]
            errors = np.stack([record["error"] for record in records])
            spread = f"rank {min(ranks)} to {max(ranks)}, mean {np.mean(ranks):.0f}"
            print(f"\n{name}: {spread}; largest error {errors.max():.4f}")


if __name__ == "__main__":
    main()
