"""Options that several `cache` commands share."""

from typing import Annotated

import typer

from shared.vocabulary import (
    Device,
    Dtype,
    Encoding,
    Engine,
    Features,
    Geometry,
    Interpolation,
    PoolingAttention,
    Precision,
    QueryHeads,
    QueryMethod,
)

TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher", help="The expert: a name of `cache teachers`, open_clip:NAME or timm:NAME."
    ),
]
ImagesOption = Annotated[
    str,
    typer.Option(
        "--images",
        help="What to encode: a folder (searched through), a file, a quoted glob, a data set file "
        "(.json .jsonl .parquet), a tar or parquet file of images, or s3://bucket/folder.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Take only the first so many images.", min=1)
]
StoreOption = Annotated[
    str, typer.Option("--store", help="The store: a folder, or s3://bucket/prefix.")
]
RootOption = Annotated[
    str | None, typer.Option("--image-root", help="Folder that a data set file's paths start from.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", help="Weights of a teacher that brings none: a file, folder or hub id."
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Folder or hub id of the text tower's tokenizer, where the weights lack it.",
    ),
]
# What bare weights were trained with, where no registry and no file beside them says it.
MeanOption = Annotated[
    str | None,
    typer.Option("--mean", help="Of bare weights: the channels' mean in training, as R,G,B."),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", help="Of bare weights: the channels' deviation in training, as R,G,B."),
]
InterpolationOption = Annotated[
    Interpolation | None,
    typer.Option(
        "--interpolation", help="Of bare weights: the resize that they were trained with."
    ),
]
QuickGeluOption = Annotated[
    bool | None,
    typer.Option(
        "--quick-gelu/--no-quick-gelu",
        help="Of bare open_clip weights: whether they were trained with QuickGELU.",
    ),
]
QUERY_RANK = 64  # a store's bytes and the question's error depend on it (docs/cache.md)
QueryOption = Annotated[
    QueryMethod | None,
    typer.Option(
        "--query",
        help="Also keep what later questions are asked of, by this method; the teacher needs a "
        "text tower.",
    ),
]
QueryRankOption = Annotated[
    int,
    typer.Option("--query-rank", help="Directions of the text space that --query keeps.", min=1),
]
QueryHeadsOption = Annotated[
    QueryHeads,
    typer.Option(
        "--query-heads",
        help="Of grad-eclip: published: one over the full width, as its code; model: the model's.",
    ),
]
GeometryOption = Annotated[
    Geometry,
    typer.Option(
        "--geometry", help="pad: the square that the student sees; crop: the authors' centre crop."
    ),
]
GridOption = Annotated[
    str,
    typer.Option(
        "--grid", help="The student's patches, ROWSxCOLUMNS; 24x24 for the published students."
    ),
]
EncodingOption = Annotated[
    Encoding,
    typer.Option(
        "--encoding",
        help="matrix: similarities at --grid; factors: smaller, and they serve any grid; patches: "
        "E_v itself as int8, which later read-outs need.",
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="Of what is stored: matrix f16 (default) or u8, a third; the others u8 (default).",
    ),
]
FeaturesOption = Annotated[
    Features,
    typer.Option(
        "--features",
        help="block: the last block's patches, as in the paper; projected: as for BiomedCLIP.",
    ),
]
AttentionOption = Annotated[
    PoolingAttention,
    typer.Option(
        "--attention",
        help="pooled: S_e and E_a; none: S_e alone, also of towers that pool by no attention.",
    ),
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        "--tolerance",
        help="factors: largest error of a similarity; images that cannot keep it are left out.",
        min=0,
    ),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Compute type of the teacher.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the teacher runs.")]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="ranks: this process, or torchrun's; ray: a Ray cluster (RAY_ADDRESS, or this "
        "machine).",
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Images per forward pass.", min=1)]
WorkersOption = Annotated[int, typer.Option("--workers", help="Threads that read images.", min=1)]

# Which namespace of a store is meant, where it holds several.
OfTeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="Only this teacher's targets.")
]
FingerprintOption = Annotated[
    str | None,
    typer.Option("--fingerprint", help="Only the targets of this fingerprint (6 digits at least)."),
]
