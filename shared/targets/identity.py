"""What a target depends on, and the fingerprint that names it."""

import hashlib
import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, NotRequired, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import UserError
from shared.targets.documents import canonical_json
from shared.vocabulary import (
    Dtype,
    Features,
    Geometry,
    Interpolation,
    Kind,
    PoolingAttention,
    Precision,
    QueryHeads,
    QueryMethod,
    Rotation,
    Stored,
)

FORMAT: Final = 2  # of the store's files; format 1 is read too (docs/store-format.md)
# Fields that format 1 does not have; left out where they say nothing, so that one more of them
# leaves the fingerprints of the stores without it.
SINCE_FORMAT_2: Final = ("width", "rotation", "attention", "query")
# Of the targets: how an image file becomes pixels, and how S_e and E_a are computed from them
# (docs/store-format.md lists the versions). Another one is another namespace.
DEFINITION: Final = 2


class Preprocessing(BaseModel):
    """How an image becomes the teacher's input tensor, once it is a square."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(gt=0)  # pixels of the square's side
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"


def default_precision(encoding: Stored) -> Precision:
    """Factors lose nothing by int8.

    The rank is chosen with it, within the same tolerance, at a third of the bytes. `patches` are
    int8 only.
    """
    return "f16" if encoding in ("matrix", "maps", "texts") else "u8"


class QueryIdentity(BaseModel):
    """On what the array `query` depends: how it is read, and in which basis of which text tower.

    The basis itself is in the namespace's provenance; it follows from text tower, terms and rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: QueryMethod
    heads: QueryHeads | None = None  # of `grad-eclip`
    layers: int | None = Field(default=None, gt=0)  # of `textspan`: the last ones, summed over
    rank: int = Field(gt=0)
    terms: int = Field(gt=0)  # version of the list that spans the basis
    text: str = Field(pattern=r"^[0-9a-f]{64}$")  # digest of the text tower and its vocabulary
    grid: tuple[int, int]  # of the teacher's own patches

    @model_validator(mode="after")
    def _consistent(self) -> "QueryIdentity":
        if (self.heads is not None) != (self.method == "grad-eclip"):
            raise ValueError("`heads` belongs to the method `grad-eclip`, and only to it")
        if (self.layers is not None) != (self.method == "textspan"):
            raise ValueError("`layers` belongs to the method `textspan`, and only to it")
        if min(self.grid) < 1:
            raise ValueError("`grid` needs at least one row and one column")
        return self


class PreprocessingDocument(TypedDict):
    """A `Preprocessing` as JSON."""

    size: int
    mean: list[float]
    std: list[float]
    interpolation: Interpolation


class IdentityDocument(TypedDict):
    """An `Identity` as JSON, in the order of its fields; `SINCE_FORMAT_2` where they are set."""

    format: int
    teacher: str
    architecture: str
    weights: str
    features: Features
    preprocessing: PreprocessingDocument
    geometry: Geometry
    dtype: Dtype
    encoding: Stored
    grid: list[int]
    precision: Precision
    tolerance: float | None
    definition: int
    width: NotRequired[int]
    rotation: NotRequired[Rotation]
    attention: NotRequired[PoolingAttention]
    query: NotRequired[Mapping[str, object]]


class Identity(BaseModel):
    """Everything the stored numbers depend on, and nothing else.

    The fingerprint covers exactly these fields.

    `grid` is (rows, columns): the student's for the `matrix` encoding, the teacher's own for
    `factors` and `patches`, that of the maps for `maps`. `precision` is that of S (`matrix`), of
    the factors or of the patches; left out, it is u8 (int8) for the last two, f16 else.
    `attention` is `none` where the targets are S_e alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = FORMAT
    teacher: str = Field(min_length=1)
    architecture: str = Field(min_length=1)
    weights: str = Field(
        pattern=r"^[0-9a-f]{64}$"
    )  # sha256 over tensor names, shapes, dtypes and bytes
    features: Features = "block"
    preprocessing: Preprocessing
    geometry: Geometry = "pad"
    dtype: Dtype = "fp32"
    encoding: Stored = "matrix"
    grid: tuple[int, int]
    precision: Precision = Field(
        default_factory=lambda fields: default_precision(fields.get("encoding", "matrix"))
    )
    tolerance: float | None = None  # of `factors`: largest error of a similarity
    definition: Literal[1, 2] = DEFINITION  # stores of the older ones stay readable
    width: int | None = Field(default=None, gt=0)  # of `patches`: channels b; `texts`: c
    rotation: Rotation | None = None  # of `patches`: what their channels were turned by
    attention: PoolingAttention = "pooled"
    query: QueryIdentity | None = None  # of a store that can be asked

    @model_validator(mode="after")
    def _consistent(self) -> "Identity":
        if (self.tolerance is not None) != (self.encoding == "factors"):
            raise ValueError("`tolerance` belongs to the encoding `factors`, and only to it")
        patches, texts = self.encoding == "patches", self.encoding == "texts"
        if (patches or texts) != (self.width is not None) or patches != (self.rotation is not None):
            raise ValueError(
                "`width` and `rotation` belong to the encoding `patches`, `width` to `texts` too"
            )
        if self.encoding in ("maps", "texts") and self.format == 1:
            raise ValueError(f"`{self.encoding}` are stored since format 2")
        if patches and (self.precision != "u8" or self.format == 1):
            raise ValueError("`patches` are stored as int8 (precision u8), since format 2")
        if self.attention == "none" and (self.format == 1 or self.encoding == "maps"):
            raise ValueError("only targets lack their attention, since format 2")
        if self.query is not None and (self.format == 1 or self.kind != "targets"):
            raise ValueError("only targets have a `query`, since format 2")
        if min(self.grid) < 1:
            raise ValueError("`grid` needs at least one row and one column")
        return self

    @property
    def kind(self) -> Kind:
        """What the namespace holds: targets of images, maps for questions, or prompts."""
        kinds: dict[Stored, Kind] = {"maps": "maps", "texts": "texts"}
        return kinds.get(self.encoding, "targets")

    @property
    def patches(self) -> int:
        """Number of patches N of the grid."""
        return self.grid[0] * self.grid[1]

    def document(self) -> IdentityDocument:
        """Return the identity as plain JSON values."""
        fields = type(self).model_fields
        absent = {name for name in SINCE_FORMAT_2 if getattr(self, name) == fields[name].default}
        return cast("IdentityDocument", self.model_dump(mode="json", exclude=absent))

    def without_query(self) -> "Identity":
        """Return the identity of the same targets without what can be asked."""
        return self.model_copy(update={"query": None})

    def fingerprint(self) -> str:
        """Return the sha256, in hexadecimal, of the canonical JSON of all fields."""
        return hashlib.sha256(canonical_json(self.document())).hexdigest()

    def namespace(self) -> str:
        """Return the folder's name in the store.

        Teacher and the first 12 hexadecimal digits of the fingerprint.
        """
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.teacher).strip("-.") or "teacher"
        return f"{name}-{self.fingerprint()[:12]}"


class Difference(NamedTuple):
    """The first field in which two identities differ."""

    field: str
    first: object
    second: object


def first_difference(first: Identity, second: Identity) -> Difference | None:
    """Return the first differing field in the order of `Identity`'s fields, or None.

    A field of a field is named with its path: `preprocessing.size`.
    """
    return _difference(first.model_dump(mode="json"), second.model_dump(mode="json"), "")


def _difference(
    first: Mapping[str, object], second: Mapping[str, object], prefix: str
) -> Difference | None:
    for name, value in first.items():
        other = second.get(name)
        if value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            return _difference(value, other, f"{prefix}{name}.")
        return Difference(f"{prefix}{name}", value, other)
    return None


def parse_identity(document: object, source: str) -> Identity:
    """Read an identity from a namespace's attributes.

    Raises
    ------
    UserError
        If the document is of another format version or not an identity; `source` names the file in
        the message.
    """
    if isinstance(document, dict) and document.get("format") not in (1, FORMAT):
        raise UserError(
            f"{source}: store format {document.get('format')!r}, this version reads 1 and "
            f"{FORMAT}: use a matching version"
        )
    try:
        return Identity.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "identity"
        raise UserError(f"{source}: not a target store: {where}: {first['msg']}") from None
