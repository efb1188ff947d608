"""The paper's tables: its numbers as printed, ours beside them, nothing blank, in three formats."""

import json
import re
import shutil
import subprocess
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from pipelines.evaluation.result import (
    SCHEMA_NUMBER,
    answers_path,
    write_answers,
    write_item_metrics,
)
from pipelines.report.commands import app
from pipelines.report.latex_tables import NOT_RUN, latex
from pipelines.report.marks import comparisons_of, marks_of
from pipelines.report.ours import Ours
from pipelines.report.paper import MODELS, SETS, read_paper
from pipelines.report.table_formats import MISSING, html, markdown, shown
from pipelines.report.tables import make_tables
from shared.errors import UserError
from tests.fixtures import results

pytestmark = pytest.mark.unit


def cell(table, group, name, column):
    cells = next(cells for g, n, cells in table.rows if (g, n) == (group, name))
    return cells[table.columns.index(column)]


def test_the_papers_numbers_are_the_printed_ones():
    one, two, three = make_tables()
    assert cell(one, "IU-Xray", "BLEU", "MEDALIGN").paper == 10.73
    assert cell(one, "MIMIC-CXR", "RaTEScore", "Greedy").paper == 43.39
    assert cell(two, "IU-Xray", "METEOR", "Beam").paper == 35.40
    assert cell(two, "IU-Xray", "METEOR", "Beam").best  # the exception to "best on all"
    assert not cell(two, "IU-Xray", "METEOR", "MEDALIGN").best
    assert cell(three, "HuatuoGPT-Vision-7B", "AVISC", "VQA-RAD Close").paper == 78.35
    assert cell(three, "LLaVA-Med-1.5", "MEDALIGN", "OmniMedVQA Close").paper == 93.38
    assert [len(table.rows) for table in (one, two, three)] == [14, 14, 22]
    assert [len(table.columns) for table in (one, two, three)] == [11, 11, 8]


def test_vcd_and_damro_are_the_same_in_tables_1_and_3_and_not_in_2():
    one, two, three = make_tables()
    same = [
        cells[one.columns.index("VCD")].paper == cells[one.columns.index("DAMRO")].paper
        for *_, cells in one.rows
    ]
    assert all(same)
    other = [
        cells[two.columns.index("VCD")].paper == cells[two.columns.index("DAMRO")].paper
        for *_, cells in two.rows
    ]
    assert not any(other)
    for model in ("HuatuoGPT-Vision-7B", "LLaVA-Med-1.5"):
        vcd, damro = (
            [c.paper for g, n, cells in three.rows for c in cells if (g, n) == (model, m)]
            for m in ("VCD", "DAMRO")
        )
        assert vcd == damro
    assert "VCD and DAMRO are identical" in " ".join(one.notes)
    assert "VCD and DAMRO are identical" not in " ".join(two.notes)


def score(value, n=10):
    return {"value": value, "interval": [value - 0.05, value + 0.05], "n": n, "trusted": True}


@pytest.fixture
def evaluation(tmp_path):
    def write(rows, metrics=None, name=None):
        result = {
            "schema": SCHEMA_NUMBER,
            "rows": rows,
            "settings": results.settings(),
            "data": results.answered(set=name),
        }
        (tmp_path / "result.json").write_text(json.dumps(result))
        for file, scores in (metrics or {}).items():
            (tmp_path / "metrics").mkdir(exist_ok=True)
            (tmp_path / "metrics" / f"{file}.json").write_text(
                json.dumps({"schema": SCHEMA_NUMBER, "scores": scores})
            )
        return tmp_path

    return write


def row(adapter, method, **scores):
    return results.row(adapter, method, scores)


def test_our_scores_stand_in_their_cells(evaluation):
    folder = evaluation(
        [
            row(
                "LoRA",
                "beam",
                open_recall=score(0.8, 645),
                closed_accuracy=score(0.5),
                closed_yes_no=score(0.9, 355),
            ),
            row("MEDALIGN", "beam", open_recall=score(0.85)),
            row("MEDALIGN", "greedy", open_recall=score(0.1)),  # not a column of the paper
        ]
    )
    one, two, three = make_tables([f"llava-med/slake={folder}"])
    model = "LLaVA-Med-1.5"
    assert cell(three, model, "Beam", "SLAKE Open").ours == Ours(
        0.8, 0.75, cast("float", pytest.approx(0.85)), 645
    )
    assert cell(three, model, "MEDALIGN", "SLAKE Open").ours.best
    assert cell(three, model, "Beam", "SLAKE Close").ours.n == 355
    assert cell(three, model, "MEDALIGN", "SLAKE Open").ours.value == 0.85
    assert cell(three, model, "MEDALIGN", "SLAKE Close").ours is None
    assert sum(c.ours is not None for *_, cells in three.rows for c in cells) == 3
    assert any(
        "LLaVA-Med-1.5, slake: 12 items (sha256 abababababab)" in note for note in three.notes
    )
    assert not any("sha256" in note for table in (one, two) for note in table.notes)
    assert "80.00 [75.0, 85.0] n=645" in markdown([three])
    assert "/80.0 &" in latex([three])
    assert "75.0--85.0" in latex([three])
    assert "**85.00** [80.0, 90.0] n=10" in markdown([three])
    assert r"\textbf{85.0}" in latex([three])
    assert "n=645" in html([three])


def test_report_metrics_beside_an_evaluation_are_found(evaluation):
    scores = {"chexbert": score(0.5), "radgraph": score(0.2), "chexbert_f1_14_micro": score(0.3)}
    folder = evaluation(
        [row("LoRA", "vcd", bleu=score(0.1), rouge_l=score(0.3))], {"lora-vcd": scores}
    )
    one, *_ = make_tables([f"huatuogpt-vision/iu-xray-report={folder}"])
    assert cell(one, "IU-Xray", "BLEU", "VCD").ours.value == 0.1
    assert cell(one, "IU-Xray", "CheXbert similarity", "VCD").ours.value == 0.5
    assert cell(one, "IU-Xray", "METEOR", "VCD").ours is None


def test_multiple_choice_fills_omnimedvqa(evaluation):
    folder = evaluation(
        [row("LoRA", "pai", choice_accuracy=score(0.7), closed_accuracy=score(0.1))]
    )
    *_, three = make_tables([f"llava-med/omnimedvqa={folder}"])
    assert cell(three, "LLaVA-Med-1.5", "PAI", "OmniMedVQA Close").ours.value == 0.7


def test_no_cell_is_blank_in_any_format():
    tables = make_tables()
    cells = sum(len(table.rows) * len(table.columns) for table in tables)
    assert cells == 14 * 11 * 2 + 22 * 8
    assert markdown(tables).count(MISSING) == cells
    assert latex(tables).count(f"/{NOT_RUN} ") == cells
    page = html(tables)
    assert page.count(f'<td class="missing">{MISSING}</td>') == cells
    assert not re.search(r"<td[^>]*>\s*</td>", page)
    for line in markdown(tables).splitlines():
        if line.startswith(("| | | here", "| |")) and "Greedy" not in line and "SLAKE" not in line:
            assert "|  |" not in line


def test_latex_has_one_table_a_model_with_a_cell_for_every_column():
    text = latex(make_tables())
    assert text.count(r"\begin{table}") == 4  # reports and questions, two models each
    for block in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.match(r"\\begin\{tabular\}\{@\{\}l(c+)@\{\}\}", block).group(1))
        rows = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {columns}
        assert sum("MEDALIGN" in line for line in rows) == 1
    assert text.count(r"\begin") == text.count(r"\end")
    assert "“" not in text
    assert "_" not in text.replace(r"\_", "")


def test_latex_fits_a_column_in_seven_points(evaluation):
    """Measured in Computer Modern at 8 pt: cmr7, which LaTeX takes for 7 pt, is 14% wider."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="cmr10")
    widest = {"interval": [0.571, 0.688], "value": 0.6222, "n": 1061, "trusted": True}
    methods = [name.lower() for name in read_paper()["methods"][:-1]]
    rows = [
        row("LoRA", name, **dict.fromkeys(("open_recall", "closed_yes_no"), widest))
        for name in methods
    ]
    places = [f"llava-med/{name}={evaluation(rows)}" for name in ("slake", "vqa-rad")]
    text = latex(make_tables(places))
    assert r"\scriptsize" in text  # 7 pt of a 10 pt article
    assert "resizebox" not in text
    for block in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
        lines = [line[:-3].split("&") for line in block.splitlines() if line.endswith(r"\\")]
        marks = r"\\textbf|\\rlap\{.*\}|[{}$^ ]"
        plain = [[re.sub(marks, "", one) for one in line] for line in lines]
        widths = [
            max(
                TextPath((0, 0), one, size=8, prop=font).get_extents().x1 if one else 0 for one in c
            )
            for c in zip(*plain, strict=True)
        ]
        assert sum(widths) + 3 * (len(widths) - 1) < 345


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex and booktabs")
def test_latex_is_typeset_a_table_a_page(evaluation, tmp_path):
    """Every cell filled and marked, at its widest: nothing sticks out of the column or the page."""
    widest = {"interval": [0.571, 0.688], "value": 0.6222, "n": 1061, "trusted": True}
    names = ("open_recall", "closed_yes_no", "choice_accuracy", "bleu", "rouge_l", "meteor")
    others = [name.lower() for name in read_paper()["methods"][:-1]]
    best = dict.fromkeys(names, widest | {"value": 0.6888})
    rows = [row("LoRA", name, **dict.fromkeys(names, widest)) for name in others]
    folder = evaluation([*rows, row("MEDALIGN", "beam", **best)])
    result = json.loads((folder / "result.json").read_text())
    result["comparisons"] = [
        {"a": "MEDALIGN + beam", "b": f"LoRA + {name}", "score": score}
        | {"difference": 0.1, "p_holm": 0.01}
        for name in others
        for score in names
    ]
    (folder / "result.json").write_text(json.dumps(result))
    places = [f"{model}/{name}={folder}" for model in MODELS for name in SETS]
    page = r"\documentclass[10pt]{article}\usepackage{booktabs}\begin{document}"
    text = latex(make_tables(places)) + r"\end{document}"
    assert text.count(r"\rlap") > 100
    (tmp_path / "tables.tex").write_text(page + "\n" + text)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    said = [line for line in done.stdout.split("\n") if "Overfull" in line or "too large" in line]
    assert said == []
    assert "(4 pages," in done.stdout


def test_marks_are_those_of_the_paired_test(evaluation):
    rows = [row("LoRA", name, open_recall=score(0.8)) for name in ("greedy", "beam", "vcd")]
    folder = evaluation([*rows, row("MEDALIGN", "beam", open_recall=score(0.7))])
    result = json.loads((folder / "result.json").read_text())
    result["comparisons"] = [
        {"a": "MEDALIGN + beam", "b": f"LoRA + {name}", "score": "open_recall"}
        | {"difference": difference, "p_holm": p}
        for name, difference, p in (("beam", -0.1, 0.04), ("greedy", 0.1, 0.01), ("vcd", 0.1, 0.06))
    ]
    (folder / "result.json").write_text(json.dumps(result))
    *_, three = make_tables([f"llava-med/slake={folder}"])
    found = {
        name: cell(three, "LLaVA-Med-1.5", name, "SLAKE Open").ours.mark
        for name in ("Greedy", "Beam", "VCD", "MEDALIGN")
    }
    assert found == {"Greedy": "−", "Beam": "+", "VCD": "", "MEDALIGN": ""}
    assert "80.0" in latex([three])
    assert "$^{+}$" in latex([three])
    assert "**80.00**+ [75.0, 85.0]" in markdown([three])
    assert any(note.startswith("+ and − beside ours") for note in three.notes)


def test_report_metrics_are_marked_over_all_of_them(tmp_path):
    """MEDALIGN's cosine is higher in 12 of 12 reports: 2 / 2**12, times the three tests."""
    rows = [row(name, "beam", bleu=score(0.5)) for name in ("LoRA", "MEDALIGN")]
    result: Any = {"schema": SCHEMA_NUMBER, "rows": rows, "data": {}, "comparisons": []}
    (tmp_path / "result.json").write_text(json.dumps(result))
    for one, higher in zip(rows, (0.2, 0.4), strict=True):
        lines: Any = [
            {"id": str(i), "images": [], "cluster": str(i), "question": "?", "reference": "a"}
            | {"prediction": "b", "scores": {"bleu": 0.5}}
            for i in range(12)
        ]
        write_answers(tmp_path, one["method"], lines)
        stem = answers_path(tmp_path, one["method"]).stem
        scores = {"bleu": 0.5, "chexbert": higher - 0.3, "rouge_l": 0.1}
        items: Any = [{"id": str(i), "scores": scores} for i in range(12)]
        write_item_metrics(tmp_path, stem, items)
    tests = comparisons_of(tmp_path, result)
    assert {one["score"]: one["p_holm"] for one in tests}["chexbert"] == 3 * 2 / 2**12
    assert marks_of(tmp_path, result) == {("LoRA + beam", "chexbert"): "−"}


def test_notes_name_folder_split_ceiling_and_baseline(evaluation, tmp_path):
    folder = evaluation([row("LoRA", "beam", closed_accuracy=score(0.5))], name="vqa-rad")
    result = json.loads((folder / "result.json").read_text())
    result["data"] |= {"split": "vqa-rad, split by-image: 734 of 1,797 training records"}
    result["data"] |= {"ceilings": {"closed_accuracy": 0.934, "open_f1_strict": 0.99}}
    result["question_only"] = {"train": "train.json", "scores": {"closed_accuracy": score(0.55)}}
    (folder / "result.json").write_text(json.dumps(result))
    *_, three = make_tables([f"llava-med/vqa-rad={folder}"])
    notes = "\n".join(three.notes)
    assert f"seed 0; from {folder}" in notes
    assert "(a) vqa-rad, split by-image: 734 of 1,797 training records" in notes
    assert "(a) what a copy of the references scores: closed_accuracy 93.4" in notes
    assert "open_f1_strict" not in notes
    assert "(a) question only, from train.json: closed_accuracy 55.0" in notes
    assert cell(three, "LLaVA-Med-1.5", "Beam", "VQA-RAD Close").ours.source == ""


def test_cells_of_several_folders_name_theirs(tmp_path):
    places = []
    for number, name in enumerate(("slake", "vqa-rad")):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = {
            "schema": SCHEMA_NUMBER,
            "rows": [row("LoRA", "beam", open_recall=score(0.8))],
            "settings": results.settings(),
            "data": results.answered(set=name),
        }
        (folder / "result.json").write_text(json.dumps(result))
        places.append(f"llava-med/{name}={folder}")
    *_, three = make_tables(places)
    sources = [
        cell(three, "LLaVA-Med-1.5", "Beam", f"{name} Open").ours.source
        for name in ("SLAKE", "VQA-RAD")
    ]
    assert sources == ["a", "b"]
    assert "$^{a}$" in latex([three])
    assert "n=10 b |" in markdown([three])


def test_columns_are_called_what_they_are():
    text = markdown(make_tables())
    assert "CheXbert similarity" in text
    assert "it is not an F1" in text
    assert "RadGraph (entity + relation) / 2" in text
    assert shown(None) == "not run here"


def test_command_writes_three_files_and_refuses_unknown_places(tmp_path, evaluation):
    folder = evaluation([row("LoRA", "beam", open_recall=score(0.8))])
    out = tmp_path / "tables"
    result = CliRunner().invoke(
        app, ["tables", "--out", str(out), "--results", f"llava-med/slake={folder}"]
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"tables.html", "tables.md", "tables.tex"}
    for wrong in ("slake", "llava-med/slak=x", "gpt/slake=x"):
        with pytest.raises(UserError, match="MODEL/SET=FOLDER"):
            make_tables([wrong])
    with pytest.raises(UserError, match=r"no result\.json"):
        make_tables([f"llava-med/slake={tmp_path / 'nowhere'}"])


def test_an_evaluation_of_another_set_is_refused(evaluation):
    folder = evaluation([row("LoRA", "greedy", open_recall=score(0.5))], name="slake")
    make_tables([f"llava-med/slake={folder}"])
    with pytest.raises(UserError, match="is of slake, not of vqa-rad"):
        make_tables([f"llava-med/vqa-rad={folder}"])


def test_a_row_without_a_column_is_named(evaluation):
    rows = [
        row("LoRA", "beam", open_recall=score(0.5)),
        row("MEDALIGN", "greedy", open_recall=score(0.6)),
        row("LoRA", "vcd@alpha=2", open_recall=score(0.7)),
    ]
    *_, three = make_tables([f"llava-med/slake={evaluation(rows)}"])
    unplaced = [note for note in three.notes if "no column for it" in note]
    assert len(unplaced) == 2
    assert "MEDALIGN + greedy" in unplaced[0]
    assert "LoRA + vcd@alpha=2" in unplaced[1]


def test_two_scores_for_one_cell_are_an_error(evaluation):
    folder = evaluation([row("LoRA", "beam", open_recall=score(0.5))])
    given = f"llava-med/slake={folder}"
    with pytest.raises(UserError, match="second score for one cell"):
        make_tables([given, given])
