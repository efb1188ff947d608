"""Every set from a replica of its release.

Records, splits, counts, leaks, and errors that say what is missing.
"""

import hashlib
import itertools
import json
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.datasets import iu_xray_vqa, path_vqa
from pipelines.datasets.check import check
from pipelines.datasets.commands import app
from pipelines.datasets.description import split_line
from pipelines.datasets.mimic_cxr_report import clean_report
from pipelines.datasets.prepare import prepare
from pipelines.datasets.registry import SETS
from pipelines.datasets.release import split_groups
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.records import Record, load_records
from tests.fixtures import dataset_replicas as replicas
from tests.fixtures.dataset_replicas import REPLICAS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", SETS)
def test_published_counts_add_up(name):
    for counts in SETS[name].published.values():
        for split in ("train", "validation", "test"):
            if f"{split} open" in counts:
                parts = counts[f"{split} open"] + counts[f"{split} closed"]
                assert parts == counts[f"{split} questions"]
        splits = [counts.get(f"{split} questions", 0) for split in ("train", "validation", "test")]
        if "questions" in counts:
            assert counts["questions"] == sum(splits)


@pytest.mark.parametrize(
    ("name", "form", "counted", "total"),
    [  # the splits together, as the sets' papers and the card of PathVQA's parquet release say
        ("path-vqa", "files", "questions", 32795),
        ("path-vqa", "files", "images", 4289),
        ("path-vqa", "parquet", "questions", 32632),
        ("slake", "json", "questions in both languages", 14028),
        ("slake", "json", "questions", 7033),
        ("mimic-cxr-report", "physionet", "images", 377110),
        ("iu-xray-report", "r2gen", "reports", 2955),
        ("vqa-rad", "pairs", "questions", 3515),
        ("vqa-rad", "json", "questions", 2248),
    ],
)
def test_published_splits_add_up_to_the_published_whole(name, form, counted, total):
    counts = SETS[name].published[form]
    splits = [counts.get(f"{split} {counted}", 0) for split in ("train", "validation", "test")]
    assert sum(splits) == total


def prepared(name, tmp_path, build=None, **options):
    build = build or REPLICAS[name][1]
    source, out = build(tmp_path / "source"), tmp_path / "out"
    about = prepare(name, source, out, allow_other_counts=True, **options)
    records = {
        part: load_records(out / split["file"], about["image_root"])
        for part, split in about["splits"].items()
    }
    return about, records


@pytest.mark.parametrize("layout", REPLICAS)
def test_every_layout_becomes_sound_conversation_files_without_image_leakage(layout, tmp_path):
    name, build = REPLICAS[layout]
    about, splits = prepared(name, tmp_path, build)
    root = Path(about["image_root"])
    shown = {
        part: {content_key(root / image) for r in rs for image in r.images}
        for part, rs in splits.items()
    }
    assert {"train", "test"} <= set(shown)
    assert not any(first & second for first, second in itertools.combinations(shown.values(), 2))
    for part, records in splits.items():
        described = about["splits"][part]
        assert described["records"] == len(records)
        assert (
            described["sha256"]
            == hashlib.sha256((tmp_path / "out" / described["file"]).read_bytes()).hexdigest()
        )
        assert all(
            record.answer and record.turns[0].text.startswith("<image>\n") for record in records
        )
        assert not check(tmp_path / "out" / described["file"], root)["problems"]
    assert about["licence"]
    assert about["access"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == about


@pytest.mark.parametrize("layout", REPLICAS)
def test_equal_releases_give_equal_files(layout, tmp_path):
    name, build = REPLICAS[layout]
    source = build(tmp_path / "source")
    first = prepare(name, source, tmp_path / "a", allow_other_counts=True)
    second = prepare(name, source, tmp_path / "b", allow_other_counts=True)
    assert [s["sha256"] for s in first["splits"].values()] == [
        s["sha256"] for s in second["splits"].values()
    ]


def test_slake_keeps_english_and_its_fields(tmp_path):
    about, splits = prepared("slake", tmp_path)
    assert [len(splits[part]) for part in ("train", "validation", "test")] == [9, 3, 6]
    first = splits["train"][0]
    assert (first.id, first.images, first.answer_type) == (
        "11901",
        ("xmlab102/source.jpg",),
        "OPEN",
    )
    assert first.question == "What modality is used to take this image?"
    assert first.extra["location"] == "Lung"
    assert first.extra["modality"] == "CT"
    assert about["counts"]["test questions"] == {"found": 6, "published": 1061}
    assert about["counts"]["test closed"]["found"] == 4
    assert about["counts"]["test yes/no"]["found"] == 2
    assert about["counts"]["train questions in both languages"]["found"] == 13
    assert (
        about["counts"]["train questions"]["found"] == 10
    )  # the one with an empty answer counts, and is left out
    assert about["notes"] == ["1 questions with an empty answer are left out"]


def test_slake_of_the_older_archive_says_validate(tmp_path):
    source = replicas.slake(tmp_path / "source")
    (source / "validation.json").rename(source / "validate.json")
    about = prepare("slake", source, tmp_path / "out", allow_other_counts=True)
    assert about["splits"]["validation"]["records"] == 3


def test_vqa_rad_strips_types_keeps_numbers_and_drops_shared_images_from_training(tmp_path):
    about, splits = prepared("vqa-rad", tmp_path)
    assert [r.id for r in splits["test"]] == ["3", "4", "5"]
    assert [r.id for r in splits["train"]] == [
        "0",
        "1",
    ]  # question 2 shows an image of the test set
    assert [r.answer_type for r in splits["train"]] == ["CLOSED", "CLOSED"]
    assert about["shared_images"] == {"test+train": 1}
    assert about["splits"]["train"]["left_out"] == 1
    assert split_line(tmp_path / "out" / "test.json") == (
        "vqa-rad, split by-image: 2 of 3 training records, since 1 of its 2 test images are "
        "training images"
    )


def test_templates_of_the_3515_pairs_are_named(tmp_path):
    about, splits = prepared("vqa-rad", tmp_path, replicas.vqa_rad_pairs)
    assert about["form"] == "pairs"
    assert [r.extra["phrase_type"] for r in splits["train"]] == [
        "freeform",
        "frame",
        "frame",
        "para",
    ]
    assert about["counts"]["train frame questions"]["found"] == 2
    assert "2 training questions are templates (`phrase_type` frame)" in about["notes"][0]
    assert [(r.id, r.answer) for r in splits["test"]] == [("11", "yes"), ("12", "2")]


def test_published_split_keeps_what_the_release_shares_and_counts_it(tmp_path):
    about, splits = prepared("vqa-rad", tmp_path, split="published")
    assert [r.id for r in splits["train"]] == ["0", "1", "2"]
    assert splits["train"][2].answer == "2"
    assert about["shared_images"] == {"test+train": 1}
    assert about["splits"]["train"]["left_out"] == 0
    line = split_line(tmp_path / "out" / "test.json")
    assert line == "vqa-rad, split published: all 3 training records"
    assert split_line(tmp_path / "source" / "test.json") is None


def test_hub_form_of_vqa_rad_calls_yes_and_no_closed_and_stores_equal_images_once(tmp_path):
    about, splits = prepared("vqa-rad", tmp_path, replicas.vqa_rad_parquet, split="published")
    assert about["form"] == "parquet"
    assert [r.answer_type for r in splits["train"]] == ["CLOSED", "OPEN", "CLOSED", "OPEN"]
    assert [r.answer_type for r in splits["test"]] == ["CLOSED", "OPEN"]
    images = sorted((tmp_path / "out" / "images").iterdir())
    assert len(images) == 4
    assert all(image.stem == hashlib.sha256(image.read_bytes()).hexdigest() for image in images)
    assert splits["train"][2].images == splits["test"][0].images


@pytest.mark.parametrize(
    "build",
    [
        replicas.path_vqa_json,
        replicas.path_vqa_pickles,
        lambda f: replicas.path_vqa_pickles(f, vqa=True),
    ],
)
def test_path_vqa_files_hold_the_same_questions_in_every_form(build, tmp_path):
    _, splits = prepared("path-vqa", tmp_path, build)
    train = splits["train"]
    assert [(r.question, r.answer, r.answer_type) for r in train] == [
        ("Where are liver stem cells (oval cells) located?", "in the canals of hering", "OPEN"),
        ("Is there a tumor?", "no", "CLOSED"),
    ]
    assert train[0].images == ("train/train_0422.jpg",)
    assert [r.answer_type for r in splits["test"]] == ["OPEN", "CLOSED"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_pickle_that_would_run_code_is_refused(hidden, tmp_path):
    source = replicas.path_vqa_pickles(tmp_path / "source")
    touched = tmp_path / "touched"
    rows = [{"image": "train_0422", "question": Payload(touched) if hidden else "q", "answer": "a"}]
    content = rows if hidden else [*rows, Payload(touched)]
    (source / "qas/train/train_qa.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"train_qa\.pkl was not opened.*primitives|Only lists"):
        prepare("path-vqa", source, tmp_path / "out", allow_other_counts=True)
    assert not touched.exists()
    pickle.loads((source / "qas/train/train_qa.pkl").read_bytes())  # the attack itself works
    assert touched.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], b"not a pickle"])
def test_other_pickles_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(UserError, match=r"x\.pkl"):
        list(path_vqa.pickle_rows(path))


def test_two_examinations_of_one_patient_stay_together():
    first, again, other = (
        iu_xray_vqa.patient(Record("1", (f"{name}/0.png",), ()))
        for name in ("CXR3030_IM-1405", "CXR3030_IM-1406", "CXR3031_IM-1405")
    )
    assert first == again == "CXR3030"
    assert other == "CXR3031"


def test_iu_xray_vqa_is_split_by_patient_with_a_seed(tmp_path):
    about, splits = prepared("iu-xray-vqa", tmp_path)
    patients = {
        part: {r.images[0].split("_")[0] for r in records} for part, records in splits.items()
    }
    assert not patients["train"] & patients["test"]
    records = [r for part in splits.values() for r in part]
    assert {r.answer for r in records} == {"Yes", "No"}
    assert {r.extra["released_answer"] for r in records} == {
        *(
            "Yes.",
            "No",
            "- No.",
            "no",
            "No (based on the clear lungs).",
            "Yes, as the report implies.",
        )
    }
    assert all(
        r.answer.lower() == r.extra["released_answer"].lstrip("- ").lower()[: len(r.answer)]
        for r in records
    )
    assert len({r.id for r in records}) == len(records) == 24
    assert "4 questions whose answer does not open with yes or no are left out" in about["notes"]
    assert 14 <= len(splits["train"]) <= 18
    assert splits["train"][0].turns[0].text.endswith("[yes, no]")
    assert {r.answer_type for r in splits["test"]} == {"CLOSED"}
    assert about["counts"]["released questions"] == {"found": 28, "published": 2573}
    assert about["counts"]["released yes/no"] == {"found": 24, "published": 2491}
    other = prepare(
        "iu-xray-vqa", tmp_path / "source", tmp_path / "other", seed=1, allow_other_counts=True
    )
    assert other["splits"]["test"]["sha256"] != about["splits"]["test"]["sha256"]


def test_iu_xray_report_shows_the_frontal_view_and_keeps_the_report(tmp_path):
    about, splits = prepared("iu-xray-report", tmp_path)
    assert [len(splits[part]) for part in ("train", "validation", "test")] == [3, 1, 2]
    first = splits["train"][0]
    assert first.images == ("CXR2384_IM-0942/0.png",)
    assert (
        first.answer
        == "The heart size and pulmonary vascularity appear within normal limits . XXXX 0 ."
    )
    assert (
        first.turns[0].text
        == "<image>\nAnalyze the chest X-ray and generate a concise medical report."
    )
    assert first.extra["task"] == "report"
    assert about["task"] == "report"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (["CXR1"], "expected an object, found a list"),
        ({"id": "CXR1", "report": "Clear."}, r"no frontal image \(ID/0\.png\)"),
        ({"image_path": ["CXR1/1.png"], "report": "Clear."}, r"no frontal image .*CXR1/1\.png"),
    ],
)
def test_an_iu_xray_row_that_is_no_examination_is_named(tmp_path, row, fault):
    source = replicas.iu_xray_report(tmp_path / "source")
    content = json.loads((source / "annotation.json").read_text())
    replicas.write_json(source / "annotation.json", {**content, "val": [*content["val"], row]})
    place = f"val item {len(content['val'])}"
    with pytest.raises(UserError, match=rf"annotation\.json, {place}: {fault}"):
        prepare("iu-xray-report", source, tmp_path / "out", allow_other_counts=True)


def test_an_iu_xray_list_under_a_blank_key_is_the_split_that_its_items_name(tmp_path):
    """As in the public copy whose counts docs/datasets.md names."""
    source = replicas.iu_xray_report(tmp_path / "source")
    content = json.loads((source / "annotation.json").read_text())
    content["    "] = content.pop("test")
    replicas.write_json(source / "annotation.json", content)
    about = prepare("iu-xray-report", source, tmp_path / "out", allow_other_counts=True)
    assert about["counts"]["test reports"]["found"] == 2

    content["test"] = content["    "]
    replicas.write_json(source / "annotation.json", content)
    with pytest.raises(UserError, match="two lists of test"):
        prepare("iu-xray-report", source, tmp_path / "again", allow_other_counts=True)

    replicas.write_json(source / "annotation.json", {"train": content["train"], "": []})
    with pytest.raises(UserError, match="no val, test; R2Gen's file has the lists"):
        prepare("iu-xray-report", source, tmp_path / "third", allow_other_counts=True)


def test_mimic_takes_one_frontal_view_a_study_pa_first(tmp_path):
    about, splits = prepared("mimic-cxr-report", tmp_path)
    assert [len(splits[part]) for part in ("train", "validation", "test")] == [3, 1, 2]
    assert splits["train"][0].images == ("p10/p10000032/s50414267/02aa804e-pa-0.jpg",)
    assert splits["train"][0].answer.startswith("There is no focal consolidation")
    assert "redistribution" in about["access"]


@pytest.mark.parametrize("name", ["iu-xray-report", "mimic-cxr-report"])
def test_lists_of_sections(name, tmp_path):
    """Both report sets circulate as lists of findings and impressions."""
    about, splits = prepared(name, tmp_path / "both", replicas.report_lists)
    first, _, third = splits["test"]
    assert first.answer == "Lung volumes are low. Heart size normal. Hypoinflation."
    assert third.answer == "Hypoinflation."
    assert len(first.images) == 2
    assert first.turns[0].text.startswith("<image>\n<image>\nAnalyze")
    assert (first.id, about["form"]) == ("open_i_1020", "lists")
    about, splits = prepared(name, tmp_path / "one", replicas.report_lists, sections=["impression"])
    assert [one.answer for one in splits["test"]] == ["Hypoinflation.", "Hypoinflation."]
    assert "1 reports without impression are left out" in about["notes"]


def test_sections_are_named_apart_by_commas_and_joined_in_the_reports_order(tmp_path):
    source = replicas.report_lists(tmp_path / "source")
    command = ["prepare", "iu-xray-report", "--source", source, "--out", tmp_path / "out"]
    command += ["--sections", "impression, findings", "--allow-other-counts"]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exit_code == 0, result.output
    first, *_ = load_records(tmp_path / "out" / "test.json")
    assert first.answer == "Lung volumes are low. Heart size normal. Hypoinflation."


def test_reports_as_open_i_publishes_them(tmp_path):
    about, splits = prepared("iu-xray-report", tmp_path / "both", replicas.open_i_reports)
    records = {one.id: one for part in splits.values() for one in part}
    assert set(records) == {f"CXR{number}" for number in range(1, 8)}
    assert records["CXR1"].answer == "Lungs are clear. No XXXX & no effusion. Normal chest."
    assert records["CXR7"].answer == "Normal chest."
    assert records["CXR2"].images == ("CXR2_IM-002-1001.png", "CXR2_IM-002-2001.png")
    assert about["form"] == "open-i"
    assert {name: one["found"] for name, one in about["counts"].items()} == {
        "reports": 8,
        "images": 14,
    }
    assert "1 reports without an image and 0 without" in about["notes"][2]
    _, splits = prepared(
        "iu-xray-report", tmp_path / "one", replicas.open_i_reports, sections=["findings"]
    )
    assert "CXR7" not in {one.id for part in splits.values() for one in part}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<eCitation><uId", "is no XML"),
        ("<html/>", "holds <html>, no report"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><eCitation/>', "declares a document type"),
    ],
)
def test_an_xml_that_is_no_report_of_open_i(content, said, tmp_path):
    source = replicas.open_i_reports(tmp_path / "source")
    (source / "ecgen-radiology" / "1.xml").write_text(content)
    with pytest.raises(UserError, match=said):
        prepare("iu-xray-report", source, tmp_path / "out", allow_other_counts=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_open_i_in_another_encoding_hides_no_document_type(encoding, tmp_path):
    source = replicas.open_i_reports(tmp_path / "source")
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><eCitation/>'
    (source / "ecgen-radiology" / "1.xml").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"is no XML|declares a document type"):
        prepare("iu-xray-report", source, tmp_path / "out", allow_other_counts=True)


def test_mimic_in_sections(tmp_path):
    source = replicas.mimic_cxr_report(tmp_path / "source")
    folder = tmp_path / "of-text"
    prepare("mimic-cxr-report", source, folder, allow_other_counts=True, sections=["impression"])
    assert load_records(folder / "test.json")[0].answer == "No acute cardiopulmonary process."
    # The table that PhysioNet's script makes of the same reports.
    shutil.rmtree(source / "mimic-cxr")
    table = source / "mimic_cxr_sectioned.csv"
    rows = ["study,impression,findings,last_paragraph,comparison"]
    rows += [f's{50414267 + i},"1. Edema ___ .\n 2. Stable.",Clear lungs.,,' for i in range(6)]
    table.write_text("\n".join(rows) + "\n")
    for sections, answer in (
        ((), "Clear lungs. Edema. Stable."),
        (("findings",), "Clear lungs."),
        (("impression",), "Edema. Stable."),
    ):
        folder = tmp_path / f"of-table{len(answer)}"
        prepare("mimic-cxr-report", source, folder, allow_other_counts=True, sections=sections)
        assert {one.answer for one in load_records(folder / "test.json")} == {answer}


def test_sections_are_refused_where_there_are_none(tmp_path):
    source = replicas.iu_xray_report(tmp_path / "iu")
    with pytest.raises(UserError, match="R2Gen's reports are not in sections"):
        prepare("iu-xray-report", source, tmp_path / "a", sections=["findings"])
    with pytest.raises(UserError, match="slake has no sections"):
        prepare("slake", source, tmp_path / "b", sections=["findings"])
    with pytest.raises(UserError, match="--sections history: there are findings, impression"):
        prepare("iu-xray-report", source, tmp_path / "c", sections=["history"])


def test_mimic_says_what_it_left_out(tmp_path):
    source = replicas.mimic_cxr_report(tmp_path / "source")
    files = source / "mimic-cxr-jpg/2.0.0/files/p10"
    (files / "p10000032/s50414267/02aa804e-pa-0.jpg").unlink()  # AP is still there
    shutil.rmtree(files / "p10000033")
    reports = source / "mimic-cxr/2.0.0/mimic-cxr-reports/files/p10"
    (reports / "p10000037/s50414272.txt").write_text("FINAL REPORT\n COMPARISON: None.\n")
    about = prepare("mimic-cxr-report", source, tmp_path / "out", allow_other_counts=True)
    assert (
        "left out: 1 whose image is not here, 0 without a report, 1 without findings"
        in about["notes"][1]
    )
    records = load_records(tmp_path / "out/train.json")
    assert records[0].images == ("p10/p10000032/s50414267/02aa804e-ap-0.jpg",)
    assert [about["splits"][part]["records"] for part in ("train", "test")] == [2, 1]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (
            replicas.MIMIC_REPORT,
            "There is no focal consolidation, pleural effusion or pneumothorax. Bilateral nodular "
            "opacities that most "
            "likely represent nipple shadows. clips project over the left lung. No acute "
            "cardiopulmonary process.",
        ),
        ("IMPRESSION: 1. Edema. 2. No effusion.\n", "Edema. No effusion."),
        (" IMPRESSION: Stable.\n FINDINGS: Clear lungs.", "Clear lungs. Stable."),
        (" FINDINGS: ___\n IMPRESSION:\n", ""),
        (" FINDING: Clear lungs.\n IMPRESSIONS: Stable.", "Clear lungs. Stable."),
        (" FINDINGS AND IMPRESSION: Clear lungs.\n CONCLUSION: Stable.", "Clear lungs. Stable."),
        ("FINAL REPORT\n No heading at all.", ""),
        (
            " CHEST, TWO VIEWS: The lungs are clear without effusion.\n IMPRESSION: Normal.",
            "The lungs are clear without effusion. Normal.",
        ),
        (
            " CHEST, 2 VIEWS: Heart size is within normal limits.",
            "Heart size is within normal limits.",
        ),
        (
            " PORTABLE AP CHEST RADIOGRAPH:\n Low volumes, no edema seen.",
            "Low volumes, no edema seen.",
        ),
        (" EXAMINATION: CHEST (PA AND LAT)\n CHEST, PA AND LATERAL: 12:30.\n", ""),
        (" COMPARISON CHEST RADIOGRAPH: From the day before this one.", ""),
        (
            " FINDINGS: Tube ends 2.5 cm above: see note.\n TECHNIQUE: AP.",
            "Tube ends 2.5 cm above: see note.",
        ),
    ],
)
def test_report_cleaner(text, cleaned):
    assert clean_report(text) == cleaned


def test_omnimedvqa_keeps_options_and_leaves_restricted_images_out(tmp_path):
    about, splits = prepared("omnimedvqa", tmp_path)
    records = [r for part in splits.values() for r in part]
    assert len(records) == 20
    four = next(r for r in records if len(r.options) == 4)
    assert four.turns[0].text.endswith("options: Fundus imaging, PET scan, Mammogram, Ultrasound")
    assert four.answer == four.options[0] == four.extra["option_A"] == "Fundus imaging"
    two = next(r for r in records if len(r.options) == 2)
    assert two.options == ("Yes", "No")
    assert "1 questions about restricted-access images are left out" in about["notes"][1]


def test_a_different_count_stops_and_is_named(tmp_path):
    source = replicas.slake(tmp_path / "source")
    with pytest.raises(UserError, match=r"test questions: 6 instead of 1061.*--allow-other-counts"):
        prepare("slake", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MISSING = [
    ("slake", "imgs", r"no image folder; expected imgs, found test\.json"),
    ("slake", "validation.json", r"validation\.json or validate\.json"),
    ("slake", "imgs/xmlab106/source.jpg", r"1 of 6 images are not below .*xmlab106/source\.jpg"),
    (
        "vqa-rad",
        "VQA_RAD Dataset Public.json",
        r"no question file; expected VQA_RAD Dataset Public\.json",
    ),
    ("vqa-rad", "VQA_RAD Image Folder", r"no image folder"),
    ("path-vqa (JSON)", "val.json", r"no validation questions; expected val\.json"),
    ("path-vqa (JSON)", "images/test/test_0003.jpg", r"test/test_0003\.jpg"),
    (
        "path-vqa (parquet)",
        "data/test-00000-of-00001-eb8844602202be60.parquet",
        r"no test-\*\.parquet beside",
    ),
    (
        "iu-xray-vqa",
        "iuxray_factuality.jsonl",
        r"no question file; expected iuxray_factuality\.jsonl",
    ),
    ("iu-xray-report", "annotation.json", r"no annotation file"),
    ("mimic-cxr-report", "mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-split.csv.gz", r"no split table"),
    ("mimic-cxr-report", "mimic-cxr", r"mimic-cxr-reports\.zip"),
    ("omnimedvqa", "OmniMedVQA/QA_information/Open-access", r"no question folder"),
]


@pytest.mark.parametrize(("layout", "missing", "message"), MISSING)
def test_a_missing_file_is_named_with_what_was_expected(layout, missing, message, tmp_path):
    name, build = REPLICAS[layout]
    source = build(tmp_path / "source")
    gone = source / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=message):
        prepare(name, source, tmp_path / "out", allow_other_counts=True)


def test_an_archive_still_packed_is_named(tmp_path):
    (tmp_path / "imgs.zip").touch()
    with pytest.raises(UserError, match=r"unpack imgs\.zip first"):
        prepare("slake", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "file", "field"),
    [
        ("slake", "train.json", "answer"),
        ("slake", "train.json", "q_lang"),
        ("vqa-rad", "VQA_RAD Dataset Public.json", "image_name"),
        ("vqa-rad", "VQA_RAD Dataset Public.json", "answer_type"),
        ("path-vqa (JSON)", "test.json", "question"),
        ("omnimedvqa", "OmniMedVQA/QA_information/Open-access/ACRIMA.json", "gt_answer"),
    ],
)
def test_a_renamed_field_is_named_with_its_record(layout, file, field, tmp_path):
    name, build = REPLICAS[layout]
    source = build(tmp_path / "source")
    rows = json.loads((source / file).read_text())
    rows[1]["renamed"] = rows[1].pop(field)
    replicas.write_json(source / file, rows)
    with pytest.raises(UserError, match=rf"record 1: no `.*{field}.*`; it has .*renamed"):
        prepare(name, source, tmp_path / "out", allow_other_counts=True)


def test_the_same_image_under_another_name_is_a_leak(tmp_path):
    source = replicas.slake(tmp_path / "source")
    shutil.copy(source / "imgs/xmlab106/source.jpg", source / "imgs/xmlab102/source.jpg")
    about = prepare("slake", source, tmp_path / "out", allow_other_counts=True)
    assert about["shared_images"]["test+train"] == 1
    assert about["splits"]["train"]["left_out"] == 3


def test_train_records_draws_with_the_seed(tmp_path):
    about, splits = prepared("slake", tmp_path, train_records=4)
    assert len(splits["train"]) == 4
    assert about["splits"]["train"]["left_out"] == 5
    with pytest.raises(UserError, match="there are 9"):
        prepare(
            "slake", tmp_path / "source", tmp_path / "b", allow_other_counts=True, train_records=10
        )


def test_split_groups_depends_on_groups_and_seed_alone():
    items = [(f"p{number % 7}", number) for number in range(70)]
    first, second = split_groups(items, lambda item: item[0], 0.7, seed=3)
    again, _ = split_groups(items[::-1], lambda item: item[0], 0.7, seed=3)
    assert sorted(first) == sorted(again)
    assert not {p for p, _ in first} & {p for p, _ in second}
    assert len(first) == 50  # the smallest number of whole groups that reaches 49


def test_check_reports_what_is_wrong(tmp_path):
    about, _ = prepared("slake", tmp_path)
    root = Path(about["image_root"])
    (root / "xmlab102/source.jpg").write_bytes(b"broken")
    rows = json.loads((tmp_path / "out/train.json").read_text())
    rows[1]["id"] = rows[0]["id"]
    rows[3]["image"] = "nowhere.jpg"
    rows[4]["image"] = "xmlab106/source.jpg"
    replicas.write_json(tmp_path / "bad.json", rows)
    problems = "\n".join(
        check(tmp_path / "bad.json", root, against=tmp_path / "out/test.json")["problems"]
    )
    assert "names 2 records" in problems
    assert "source.jpg cannot be read" in problems
    assert "nowhere.jpg cannot be opened: No such file" in problems
    assert f"1 images are also in {tmp_path / 'out/test.json'}; 1 records here show" in problems
    assert f"first id {rows[4]['id']}" in problems


def test_check_counts_kinds_and_repeats_by_content(tmp_path):
    for name, pixel in (("a", 0), ("copy-of-a", 0), ("b", 1)):
        picture = Image.new("RGB", (8, 8))
        picture.putpixel((pixel, 0), (255, 0, 0))
        picture.save(tmp_path / f"{name}.png")
    report = "The lungs are clear. No effusion."
    rows = [
        {"id": "1", "image": "a.png", "question": "Where?", "answer": "left"},
        {"id": "2", "image": "copy-of-a.png", "question": "Where?", "answer": "left"},
        {"id": "3", "image": "b.png", "question": "Where?", "answer": "left"},
        {"id": "4", "image": "a.png", "question": "Where?", "answer": "right"},
        {"id": "5", "image": "a.png", "question": "Clear?", "answer": "yes"},
        {"id": "6", "question": "Which?", "answer": "CT", "choices": ["CT", "MRI", "PET"]},
        {"id": "7", "image": "b.png", "question": "Report.", "answer": report, "task": "report"},
    ]
    file = replicas.write_json(tmp_path / "rows.json", rows)
    found = check(file)
    assert found["scored_as"] == {"open": 4, "closed": 1, "choice": 1, "report": 1}
    assert found["inferred"] == {"open": 4, "closed": 1}
    assert (found["images"], found["distinct_images"]) == (3, 2)
    assert (found["repeated"], found["first_repeated"]) == (1, ["1", "2"])
    printed = CliRunner().invoke(app, ["check", str(file)]).output
    assert "scored as: 1 choice, 1 closed, 4 open, 1 report" in printed
    assert "1 of 7 records (14.3%) show no image" in printed
    assert "1 records repeat another (images, questions and answers), first 2, as 1" in printed
    assert "no problems" in printed


def test_check_says_what_records_lack(tmp_path):
    rows = [
        {"id": 1, "question": "Where?", "answer": "x", "choices": "somewhere in the chest"},
        {"id": 2, "question": " ", "answer": "Lung"},
        {"id": 3, "question": "What?"},
    ]
    found = check(replicas.write_json(tmp_path / "bare.json", rows))
    assert found["without_image"] == 3
    assert found["problems"] == [
        "1 records have no answer, first id 3",
        "1 records ask nothing, first id 2",
        "1 records offer one choice alone, first id 1",
    ]
    printed = CliRunner().invoke(app, ["check", str(tmp_path / "bare.json")]).output
    assert "3 of 3 records (100.0%) show no image: they are text alone" in printed


def test_commands_print_terms_counts_and_hashes(tmp_path):
    source = replicas.slake(tmp_path / "source")
    arguments = [
        "prepare",
        "slake",
        "--source",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--allow-other-counts",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "licence: CC BY 4.0" in result.output
    assert "1061  differs" in result.output
    assert str(tmp_path / "out/train.json") in result.output
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["sets"]
    assert {row["name"] for row in listed} == {name for name, _ in REPLICAS.values()} | {
        "brain-atlas",
        "nih-rsna",
    }
    checked = CliRunner().invoke(
        app, ["check", str(tmp_path / "out/test.json"), "--image-root", str(source / "imgs")]
    )
    assert checked.exit_code == 0
    assert "no problems" in checked.output
    wrong = CliRunner().invoke(
        app, ["check", str(tmp_path / "out/test.json"), "--image-root", str(tmp_path)]
    )
    assert isinstance(wrong.exception, UserError)
    unknown = CliRunner().invoke(app, ["prepare", "slak", "--source", "x", "--out", "y"])
    assert "did you mean slake?" in str(unknown.exception)
    nowhere = CliRunner().invoke(app, ["prepare", "slake", "--out", str(tmp_path / "y")])
    assert isinstance(nowhere.exception, UserError)
    assert "slake needs --source DIR" in str(nowhere.exception)


def test_a_repeated_id_is_numbered(tmp_path):
    source = replicas.slake(tmp_path / "source")
    rows = json.loads((source / "test.json").read_text())
    rows[1]["qid"] = rows[0]["qid"]
    replicas.write_json(source / "test.json", rows)
    prepare("slake", source, tmp_path / "out", allow_other_counts=True)
    first, second = load_records(tmp_path / "out/test.json")[:2]
    assert (first.id, second.id) == (str(rows[0]["qid"]), f"{rows[0]['qid']}-2")
