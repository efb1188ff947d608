"""Presets and overrides.

Data that must name real settings, and errors that name the nearest one.
"""

import dataclasses
from typing import Any, cast

import pytest

from pipelines.decoding.methods import NAMES, decoding, decodings
from pipelines.decoding.presets import PRESETS, family_preset
from shared.errors import UserError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_presets_name_real_settings_and_types(preset: str, name: str) -> None:
    assert set(PRESETS[preset]) <= set(NAMES)
    chosen, plain = decoding(name, preset), decoding(name)
    for field in dataclasses.fields(chosen.settings):
        before, after = getattr(plain.settings, field.name), getattr(chosen.settings, field.name)
        assert None in (before, after) or type(before) is type(after), field.name
    assert chosen.described()["method"] == name


def test_the_authors_values() -> None:
    llava, huatuo = (
        {one.name: cast("Any", one.settings) for one in decodings(["all"], f"authors-{m}")}
        for m in ("llava-med", "huatuo")
    )
    assert (llava["opera"].scale, llava["opera"].threshold) == (25.0, 25)
    assert (huatuo["opera"].scale, huatuo["opera"].threshold) == (50.0, 15)
    assert (llava["m3id"].temperature, huatuo["m3id"].temperature) == (1.0, 0.7)
    assert llava["damro"].alpha == 0.5
    assert (llava["damro"].others, llava["damro"].attention) == ("zero", "last")
    assert (llava["nucleus"].temperature, huatuo["nucleus"].temperature) == (1.0, None)
    for preset in (llava, huatuo):
        assert (preset["opera"].rule, preset["nucleus"].top_p) == ("published", 0.9)
    assert llava["dola"].candidate_layers == (0, 2, 4, 6, 8, 10, 12, 14)
    assert family_preset("authors", "huatuo_v1") == "authors-huatuo"
    assert family_preset("authors", "vicuna_v1") == "authors-llava-med"
    assert family_preset("equal", "huatuo_v1") == "equal"


def test_the_published_values() -> None:
    """As the repositories of VCD, OPERA, DoLa and PAI start their scripts."""
    found = {one.name: cast("Any", one.settings) for one in decodings(["all"], "published")}
    vcd, opera, dola, pai = (found[name] for name in ("vcd", "opera", "dola", "pai"))
    assert (vcd.alpha, vcd.beta, vcd.noise_step, vcd.sample) == (1.0, 0.1, 500, True)
    assert (opera.num_beams, opera.scale, opera.threshold) == (5, 50.0, 15)
    assert (opera.candidates, opera.penalty, opera.length_penalty) == (5, 1.0, 1.0)
    assert (dola.candidate_layers, dola.relative_top, dola.repetition_penalty) == (None, 0.1, 1.2)
    assert (pai.alpha, pai.gamma, pai.start_layer, pai.end_layer) == (0.2, 1.1, 2, None)


@pytest.mark.parametrize("preset", ["authors-llava-med", "authors-huatuo"])
def test_the_authors_draw_under_every_contrast_with_a_noisy_or_blind_view(preset: str) -> None:
    for one in decodings(["vcd", "avisc", "m3id", "damro"], preset):
        assert cast("Any", one.settings).sample is True


def test_equal_draws_only_where_there_is_no_choice() -> None:
    for one in decodings(["all"], "equal"):
        assert getattr(one.settings, "sample", False) is False
        assert getattr(one.settings, "repetition_penalty", 1.0) == 1.0


def test_overrides_are_yaml_values() -> None:
    chosen = decodings(
        ["dola", "vcd"],
        overrides=["dola.candidate_layers=[1, 3]", "vcd.alpha=0.5", "vcd.sample=false"],
    )
    dola, vcd = (cast("Any", one.settings) for one in chosen)
    assert dola.candidate_layers == (1, 3)
    assert (vcd.alpha, vcd.sample) == (0.5, False)


@pytest.mark.parametrize(
    ("names", "preset", "overrides", "message"),
    [
        (["gready"], "published", [], "did you mean greedy"),
        (["vcd"], "equals", [], "did you mean equal"),
        (["vcd"], "published", ["vcd.alfa=1"], "did you mean alpha"),
        (["vcd"], "published", ["alpha=1"], "write method.setting=value"),
        (["vcd"], "published", ["opera.scale=1"], "not among the methods"),
    ],
)
def test_errors_name_the_nearest(
    names: list[str], preset: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        decodings(names, preset, overrides)
