"""Settings of the methods: types and ranges, refused in one line, and listed in the docs."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipelines.decoding.methods import NAMES, decoding, decodings
from pipelines.decoding.settings import table
from shared.errors import UserError

pytestmark = pytest.mark.unit

REFUSED = {
    "pai.start_layer=-1": "pai.start_layer=-1: it must be a whole number from 0",
    "pai.end_layer=1.5": "a whole number from 0 or null",
    "vcd.alpha=much": "vcd.alpha=much: it must be a number",
    "vcd.alpha=.nan": "it must be a number",
    "vcd.alpha=.inf": "it must be a number",
    "vcd.alpha=true": "vcd.alpha=true: it must be a number",
    "vcd.beta=2": "vcd.beta=2: it must be a number from 0 to 1",
    "vcd.sample=1": "it must be true or false",
    "vcd.noise_step=1000": "a whole number from 0 to 999",
    "m3id.temperature=-0.1": "a number from 0",
    "m3id.confidence=0": "a number above 0 to 1 or null",
    "nucleus.top_p=1.2": "a number from 0 to 1",
    "nucleus.top_k=-1": "a whole number from 0",
    "beam.num_beams=0": "a whole number from 1",
    "damro.others=blank": "it must be drop or zero",
    "dola.candidate_layers=3": "a list: a whole number from 0 each",
    "dola.candidate_layers=[-1]": "a list: a whole number from 0 each",
    "dola.repetition_penalty=0": "a number above 0",
    "opera.short_window=0": "opera.short_window=0: it must be a whole number from 1",
    "opera.rule=mine": "it must be published or paper",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_value_of_another_type_or_range_is_one_line(override: str) -> None:
    with pytest.raises(UserError) as error:
        decodings([override.partition(".")[0]], overrides=[override])
    assert REFUSED[override] in str(error.value)
    assert "\n" not in str(error.value)


def test_python_is_checked_as_the_command_line_is() -> None:
    from pipelines.decoding import opera

    with pytest.raises(ValueError, match="short_window"):
        opera.Settings(short_window=0)


def test_a_whole_number_is_the_same_setting_as_its_float() -> None:
    one, other = (decoding("vcd", overrides={"alpha": value}) for value in (1, 1.0))
    assert str(one.described()) == str(other.described())


def test_the_docs_list_every_setting() -> None:
    methods: dict[str, Any] = {
        name: import_module(f"pipelines.decoding.{name}").Settings for name in NAMES
    }
    page = Path(__file__).parents[3] / "docs" / "evaluation.md"
    assert "\n".join(table(methods)) in page.read_text(encoding="utf-8")


def test_one_method_with_two_settings() -> None:
    asked = ["vcd", "vcd@alpha=0.5", "vcd@alpha=-1;beta=0.2", "greedy"]
    first, second, third, greedy = decodings(asked, "equal", ["vcd.noise_step=700"])
    assert [one.label for one in (first, second, third, greedy)] == asked
    values: Any = [one.settings for one in (first, second, third)]
    assert [one.alpha for one in values] == [1.0, 0.5, -1.0]
    assert [one.beta for one in values] == [0.1, 0.1, 0.2]
    assert {one.noise_step for one in values} == {700}
    assert len({str(one.described()) for one in (first, second, third)}) == 3
    with pytest.raises(UserError, match="write method@setting=value"):
        decodings(["vcd@0.5"])
    with pytest.raises(UserError, match="did you mean alpha"):
        decodings(["vcd@alfa=1"])
