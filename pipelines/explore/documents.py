"""The documents that the page asks for, as TypedDicts. Shares and marks lie in [0, 1]."""

from typing import TypedDict


class RowDocument(TypedDict):
    """A row of the result: an arm under a decoding."""

    name: str
    arm: str


class RunDocument(TypedDict):
    """What the page opens with."""

    title: str
    rows: list[RowDocument]
    pair: list[int]  # rows between which answers turn, by place
    items: int
    cluster: str  # what a cluster is
    file: str
    kinds: list[str]
    fields: list[str]  # by which the evaluation made groups
    teacher: str | None
    store: str | None
    students: list[str]
    weights: int | None  # bytes of one student
    regions: bool
    no_map: str  # why no question has a map, and what to do; empty: it has
    no_answer: str  # the same of the model's answer
    notes: list[str]


class ListedItem(TypedDict):
    """A line of the list: `marks` has each row's main score."""

    place: int
    id: str
    question: str
    reference: str
    kind: str
    marks: list[float]


class ItemsDocument(TypedDict):
    """A page of the list; `following` is where the next one starts."""

    items: list[ListedItem]
    following: int | None
    searched: int
    total: int


class AnswerDocument(TypedDict):
    """What one row says to an item."""

    text: str
    mark: float
    scores: dict[str, float]


class ItemDocument(TypedDict):
    """All about one item but its pictures."""

    place: int
    id: str
    question: str
    reference: str
    kind: str
    cluster: str
    images: list[str]
    fields: dict[str, str]
    answers: list[AnswerDocument]


class StudentMap(TypedDict):
    """A student's attention in one layer, a sum of 1; `divergence` KL(teacher || student), nats."""

    values: list[float]
    divergence: float | None


class StudentMaps(TypedDict):
    """A student's attention by layer; `layer` is the one that is shown first."""

    layer: int
    grid: tuple[int, int]
    layers: dict[int, StudentMap]
    similarity: bool  # whether the rows of S_x can be asked for


class MapsDocument(TypedDict):
    """One image of an item: where it lies in the encoder's square, and who looks where."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    grid: tuple[int, int] | None
    visible: list[bool] | None
    teacher: list[float] | None
    students: dict[str, StudentMaps]
    regions: list[dict[str, str]]  # label and colour
    notes: list[str]


class QuestionDocument(TypedDict):
    """What came of a question: a map with a sum of 1, an answer, and lines of what did not come."""

    question: str
    map: list[float] | None
    answer: str | None
    notes: list[str]


class SimilarityDocument(TypedDict):
    """Similarity of one patch to every patch: S_e of the teacher, S_x of the students at l."""

    teacher: list[float] | None
    students: dict[str, list[float]]
