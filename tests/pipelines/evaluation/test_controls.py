"""Controls: what is shown and asked, what follows from the answers, what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.decoding.methods import NAMES as METHODS
from pipelines.evaluation.clusters import Clusters
from pipelines.evaluation.controls import (
    MIRROR_TOLERANCE,
    NAMES,
    Questions,
    asymmetry,
    blank,
    make_controls,
    pictures,
)
from pipelines.evaluation.lines import table_lines
from pipelines.evaluation.loading import load_student
from pipelines.evaluation.question_only import answers_by_question, training_file
from pipelines.evaluation.reliance import Controlled, controlled
from pipelines.evaluation.result import read_answers, read_result
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.scores import Scored
from pipelines.evaluation.sides import mirrored_record, names_side, swapped
from shared.errors import UserError
from shared.records import Record, Turn, load_records, write_records
from student_train.adapter.provenance import file_digest
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def record(name: str, images: tuple[str, ...], question: str = "?", answer: str = "yes") -> Record:
    return Record(name, images, (Turn("human", question), Turn("gpt", answer)))


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Left lung", "Right lung"),
        ("the RIGHT, then the left", "the LEFT, then the right"),
        ("left-sided and rightward, leftmost", "right-sided and leftward, rightmost"),
        ("rt. pleura (Lt)", "lt. pleura (Rt)"),
        ("左肺", "右肺"),
        ("leftover upright lateral", "leftover upright lateral"),
        ("left_lung", "right_lung"),
    ],
)
def test_sides_are_exchanged(text: str, other: str) -> None:
    assert swapped(text) == other
    assert swapped(other) == text
    assert names_side(text) == (text != other)


def test_a_mirrored_record_names_the_other_side_throughout() -> None:
    one = Record("1", ("a.png",), (Turn("human", "Left?"), Turn("gpt", "right")), None, ("left",))
    other = mirrored_record(one)
    assert (other.question, other.answer, other.options) == ("Right?", "left", ("right",))
    assert mirrored_record(other) == one


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30),
)
def test_shuffled_shows_each_image_as_often_and_never_ones_own(
    shape: list[tuple[int, int]],
) -> None:
    """Records of a few patients with none to three images each, one patient never too many."""
    records = [
        record(str(row), tuple(f"{patient}-{row}-{i}.png" for i in range(images)))
        for row, (patient, images) in enumerate(shape)
    ]
    contents = [one.images for one in records]
    clusters = Clusters("patient", [str(patient) for patient, _ in shape])
    questions = Questions(records, contents, clusters)
    per_patient: Counter[int] = Counter()
    for patient, images in shape:
        per_patient[patient] += images
    total = per_patient.total()
    if not total:
        with pytest.raises(UserError, match="no question of this test set shows an image"):
            make_controls(["shuffled"], questions, Path())
        return
    if 2 * max(per_patient.values()) > total:
        with pytest.raises(UserError, match="leave out shuffled"):
            make_controls(["shuffled"], questions, Path())
        return
    [one] = make_controls(["shuffled"], questions, Path())
    assert [one] == make_controls(["shuffled"], questions, Path())
    assert one.places == [row for row, (_, images) in enumerate(shape) if images]
    shown = [image for asked in one.questions.records for image in asked.images]
    assert Counter(shown) == Counter(image for own in contents for image in own)
    for asked, names, place in zip(
        one.questions.records, one.questions.contents, one.places, strict=True
    ):
        assert len(asked.images) == len(records[place].images)
        assert asked.images == names
        assert all(int(image.split("-")[0]) != shape[place][0] for image in asked.images)


def test_patients_who_share_an_image_are_not_each_others_control() -> None:
    records = [record(str(row), (f"{row}.png",)) for row in range(4)]
    contents = [("x",), ("x",), ("y",), ("z",)]
    questions = Questions(records, contents, Clusters("patient", ["a", "b", "c", "d"]))
    [one] = make_controls(["shuffled"], questions, Path())
    assert {shown[0] for shown in one.questions.contents[:2]} == {"y", "z"}


def test_blank_is_the_colour_of_the_padding(small_run: Path) -> None:
    """A strip is padded to a square: its first row is that colour, whatever the strip shows."""
    processor = load_student(small_run / "lora").processor
    strip = Image.new("RGB", (200, 20), (255, 0, 0))
    strip.putpixel((0, 0), (0, 255, 0))
    padding = processor.reader.pixels(strip)[:, 0, 0]
    seen = processor.reader.pixels(blank(processor))
    assert (seen == padding[:, None, None]).all()


def test_mirrored_is_the_picture_read_from_right_to_left(small_run: Path) -> None:
    processor = load_student(small_run / "lora").processor
    data = small_run / "data"
    [one, *_] = load_records(data / "test.json")
    questions = Questions([one], [("key",)], Clusters("image", ["key"]))
    [control] = make_controls(["mirrored"], questions, data)
    from pipelines.evaluation.items import items_of

    items = items_of([one], [("key",)], "t")
    [item] = control.items(items, "t")
    [shown] = pictures(item, processor, data)
    with Image.open(data / one.images[0]) as original:
        assert (np.asarray(shown) == np.asarray(original.convert("RGB"))[:, ::-1]).all()
    assert item.seed == items[0].seed == items[0].name


def test_an_image_that_is_its_own_mirror_is_refused(tmp_path: Path) -> None:
    half = np.random.default_rng(0).integers(0, 255, (20, 10, 3), dtype=np.uint8)
    Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)).save(tmp_path / "same.png")
    Image.fromarray(np.concatenate([half, half], axis=1)).save(tmp_path / "other.png")
    with Image.open(tmp_path / "other.png") as other:
        assert asymmetry(other) > MIRROR_TOLERANCE
    records = [record("1", ("other.png",)), record("2", ("same.png",))]
    questions = Questions(records, [("x",), ("y",)], Clusters("image", ["x", "y"]))
    with pytest.raises(UserError, match=r"1 of 2 images equal their mirror.*first same\.png"):
        make_controls(NAMES, questions, tmp_path)
    assert len(make_controls(["blank", "shuffled"], questions, tmp_path)) == 2


def test_an_unknown_control_is_refused() -> None:
    questions = Questions([record("1", ("x",))], [("x",)], Clusters("image", ["x"]))
    with pytest.raises(UserError, match="no control is called dark; there are blank, shuffled"):
        make_controls(["dark"], questions, Path())


def test_an_evaluation_with_controls(small_run: Path, tmp_path: Path) -> None:
    data = small_run / "data" / "test.json"
    given: Any = {"methods": ["greedy", "vcd"], "out": tmp_path, "max_new_tokens": 4}
    result = evaluate(small_run, data, **given, controls=["mirrored", "blank", "shuffled"])
    found = result["controls"]
    assert found is not None
    assert found["items"] == 12
    rows = [row["method"] for row in result["rows"]]
    assert [(one["row"], one["control"]) for one in found["rows"]] == [
        (row, control) for row in rows for control in NAMES
    ]
    # Every number from the answers files alone.
    for one in found["rows"]:
        before = read_answers(tmp_path, one["row"])
        after = read_answers(tmp_path / "controls" / one["control"], one["row"])
        assert [line["id"] for line in after] == [line["id"] for line in before]
        for loss in found["losses"]:
            if loss["a"] == one["row"] and loss["b"] == f"{one['row']}, {one['control']}":
                pairs = [
                    (a["scores"][loss["score"]], b["scores"][loss["score"]])
                    for a, b in zip(before, after, strict=True)
                    if loss["score"] in a["scores"]
                ]
                assert loss["difference"] == pytest.approx(np.mean([a - b for a, b in pairs]))
                assert one["scores"][loss["score"]]["value"] == pytest.approx(
                    np.mean([b for _, b in pairs])
                )
        sided = [
            a["prediction"].lower().rstrip(".") != b["prediction"].lower().rstrip(".")
            for a, b in zip(before, after, strict=True)
            if one["control"] != "mirrored" or "left" in a["reference"]
        ]
        assert one["changed"] is not None
        assert one["changed"]["value"] == pytest.approx(np.mean(sided))
        assert one["changed"]["n"] == len(sided)
    mirrored = read_answers(tmp_path / "controls" / "mirrored", rows[0])
    assert [line["reference"] for line in mirrored if "lung" in line["reference"]] == [
        "right lung"
    ] * 4
    shuffled = read_answers(tmp_path / "controls" / "shuffled", rows[0])
    own = {line["id"]: line["images"] for line in read_answers(tmp_path, rows[0])}
    assert all(line["images"] != own[line["id"]] for line in shuffled)
    text = "\n".join(table_lines(result))
    assert "controls on 12 items with an image" in text
    assert "LoRA + greedy, blank: open_recall" in text
    assert "LoRA + vcd, shuffled: image sensitivity" in text
    # Nothing is answered twice, and the controls change no answer of the table.
    size = (tmp_path / "journal" / "answers-0.jsonl").stat().st_size
    again = evaluate(small_run, data, **given, controls=NAMES)
    assert again["controls"] == found
    assert (tmp_path / "journal" / "answers-0.jsonl").stat().st_size == size
    plain = evaluate(small_run, data, **{**given, "out": tmp_path / "plain"})
    assert plain["controls"] is None
    assert [row["scores"] for row in plain["rows"]] == [row["scores"] for row in result["rows"]]
    few = evaluate(small_run, data, **given, controls=["blank"], control_limit=5)
    assert few["controls"] is not None
    assert few["controls"]["items"] == 5
    assert read_result(tmp_path / "result.json")["controls"] == json.loads(
        json.dumps(few["controls"])
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_a_blank_image(small_run: Path, tmp_path: Path, method: str) -> None:
    result = evaluate(
        {"LoRA": small_run / "lora"},
        small_run / "data" / "test.json",
        methods=[method],
        out=tmp_path,
        max_new_tokens=3,
        controls=["blank"],
        limit=3,
    )
    assert result["controls"] is not None


def scored(values: list[float], texts: list[str] | None = None) -> Scored:
    names = [str(place) for place in range(len(values))]
    return Scored(
        texts or [str(value) for value in values],
        [{"closed_accuracy": value} for value in values],
        names,
    )


def test_a_gain_that_survives_blank_images_is_flagged() -> None:
    """Row a is right on 20 of 40, b on none; on blank images a stays right on `kept` of them."""
    a, b = scored([1.0] * 20 + [0.0] * 20), scored([0.0] * 40)

    def survivors(kept: int) -> list[str]:
        places = list(range(40))
        blind = scored([1.0] * kept + [0.0] * (40 - kept))
        rows = {
            "a": (a, {"blank": Controlled(places, blind, [False] * 40)}),
            "b": (b, {"blank": Controlled(places, b, [False] * 40)}),
        }
        found = controlled(rows, [("a", "b")])
        assert found is not None
        assert found["losses"][0]["difference"] == pytest.approx((20 - kept) / 40)
        return [one["score"] for one in found["survivors"]]

    assert survivors(20) == survivors(10) == ["closed_accuracy"]
    assert survivors(0) == []
    assert survivors(5) == []  # five differing items of one direction: p = 2 / 32


def test_the_most_frequent_answer_of_each_question() -> None:
    learned = [
        record("1", (), "Is it normal?", "No"),
        record("2", (), "is it  NORMAL?", "Yes"),
        record("3", (), "Is it normal?", "Yes"),
        record("4", (), "Which organ?", "liver"),
        record("5", (), "Which organ?", "heart"),
        Record(
            "6",
            ("x.png",),
            (
                Turn("human", "<image>\nWhich plane?"),
                Turn("gpt", "axial"),
                Turn("human", "Which organ?"),
                Turn("gpt", "heart"),
            ),
        ),
    ]
    asked = [
        record("a", ("x.png",), "Is it normal?", "No"),
        record("b", ("x.png",), "Which organ?", "spleen"),
        record("c", ("x.png",), "Which plane?", "coronal"),
        record("d", ("x.png",), "Is it there?", "No"),
        record("e", ("x.png",), "Where?", "left lung"),
    ]
    texts, known = answers_by_question(learned, asked)
    assert texts == ["Yes", "heart", "axial", "Yes", "heart"]
    assert known == 3


def test_the_baseline_stands_in_the_table(small_run: Path, tmp_path: Path) -> None:
    data = small_run / "data" / "test.json"
    train = tmp_path / "train.json"
    write_records(train, load_records(data)[:3])
    result = evaluate(small_run, data, out=tmp_path / "out", max_new_tokens=2, train=train)
    found = result["question_only"]
    assert found is not None
    assert found["known"] == 12
    assert found["scores"]["open_recall"]["value"] == 1.0
    lines = list(table_lines(result))
    [row] = [line for line in lines if line.startswith("question only  ")]
    assert row.split()[2] == "100.0"
    assert any("has the text of 12 of 12 questions" in line for line in lines)
    with pytest.raises(UserError, match="no data set file at"):
        evaluate(small_run, data, out=tmp_path / "out", train=tmp_path / "none.json")


def test_the_training_data_are_those_that_the_run_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train.json"
    write_records(train, [record("1", (), "Is it normal?", "No")])
    assert training_file(tmp_path) is None
    recorded = {"train": {"file": str(train), "sha256": file_digest(train)}}
    (tmp_path / "provenance.json").write_text(json.dumps({"schema": 1, "data": recorded}))
    assert training_file(tmp_path) == train
    write_records(train, [record("1", (), "Is it normal?", "Yes")])
    assert training_file(tmp_path) is None
    train.unlink()
    assert training_file(tmp_path) is None
    said = capsys.readouterr().err
    assert "has changed since training" in said
    assert "is not there" in said
