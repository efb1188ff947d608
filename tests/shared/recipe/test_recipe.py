"""The recipe: what it takes, what it refuses, and how it says so."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from shared.recipe import Recipe, load_recipe, make_recipe, recipe_keys, save_recipe

pytestmark = pytest.mark.unit


def test_defaults_are_the_authors() -> None:
    recipe = load_recipe(None)
    assert (recipe.train.learning_rate, recipe.train.warmup_ratio, recipe.train.weight_decay) == (
        2e-4,
        0.03,
        0.0,
    )
    assert (recipe.train.schedule, recipe.train.precision, recipe.train.seed) == (
        "cosine",
        "bf16",
        4,
    )
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets) == (
        32,
        16,
        0.05,
        "all-linear",
    )
    assert (recipe.losses.alpha, recipe.losses.layers, recipe.data.max_length) == (1.0, (20,), 1024)
    assert recipe.rotation.kind == "full"


@pytest.mark.parametrize(
    ("normalization", "beta"), [("renormalized", 0.00125), ("l2", 0.03), ("softmax", 0.03)]
)
def test_beta_belongs_to_the_normalization(normalization: str, beta: float) -> None:
    assert (
        load_recipe(None, [f"losses.attention_normalization={normalization}"]).losses.beta == beta
    )
    both = load_recipe(None, [f"losses.attention_normalization={normalization}", "losses.beta=0.5"])
    assert both.losses.beta == 0.5
    assert load_recipe(None, ["losses.beta=0"]).losses.beta == 0.0


def test_file_overrides_and_saved_copy(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model:\n  name: huatuogpt-vision-7b\ntrain:\n  epochs: 12\nlosses:\ntargets: {teacher: "
        "[a, b]}\n"
    )
    recipe = load_recipe(
        path, ["losses.layer=[16, 20]", "train.epochs=3", "deepspeed=zero3", "data.train=a=b.json"]
    )
    assert recipe.model.name == "huatuogpt-vision-7b"
    assert recipe.losses.layers == (16, 20)
    assert recipe.train.epochs == 3.0
    assert recipe.deepspeed == "zero3"
    assert recipe.data.train == "a=b.json"
    assert recipe.targets.teacher == ["a", "b"]
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    saved = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert saved["losses"]["beta"] == 0.00125
    assert set(saved) == set(Recipe.model_fields)


def test_scientific_numbers_without_a_point() -> None:
    assert load_recipe(None, ["train.learning_rate=1e-4"]).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "train.learnig_rate=1",
            r"unknown key `train\.learnig_rate`; did you mean `train\.learning_rate`\?",
        ),
        ("trian.epochs=1", r"unknown key `trian`; did you mean `train`\?"),
        ("lora.epochs=1", r"unknown key `lora\.epochs`; did you mean `train\.epochs`\?"),
        ("layer=20", r"unknown key `layer`; did you mean `losses\.layer`\?"),
        ("lora.zzz=1", r"unknown key `lora\.zzz`; nearest is `lora\.\w+`; valid here: r, alpha"),
        ("losses.alpha=-1", r"`losses\.alpha` is -1: .*greater than or equal to 0"),
        ("losses.alpha=.inf", r"`losses\.alpha` is inf"),
        ("losses.layer=0", r"`losses\.layer` is 0"),
        ("losses.layer=deep", r"`losses\.layer` is 'deep': .*integer"),
        ("losses.attention_normalization=l3", r"`losses\.attention_normalization` is 'l3': .*'l2'"),
        ("train=5", r"`train` is 5"),
        ("train.epochs", "not of the form key=value"),
        ("=5", "not of the form key=value"),
        ("deepspeed.stage=2", r"`deepspeed` is"),
        ("train.report_to=[tensorbord]", r"'tensorbord'.*'tensorboard'"),
        ("losses.layer=[]", r"`losses\.layer` is \[\]: .*at least 1 item"),
        ("losses.layer=[16, 16]", r"`losses\.layer` is \[16, 16\]: .*given twice"),
        ("train.epochs=yes", r"`train\.epochs` is True: input should be a number"),
        ("train.warmup_ratio=.nan", r"`train\.warmup_ratio` is nan"),
        ("targets.teacher=[]", r"`targets\.teacher` is \[\]"),
        (
            "train.eval_steps=5",
            r"the recipe: train\.eval_steps is set, but data\.validation is not",
        ),
        ("train.best_metric=eval_loss", r"train\.best_metric needs evaluations"),
        ("train.early_stopping=3", r"train\.early_stopping needs train\.best_metric"),
    ],
)
def test_faults_are_named_in_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load_recipe(None, [override])
    assert "\n" not in str(caught.value)


def test_override_below_a_plain_value(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("deepspeed: zero2\n")
    with pytest.raises(UserError, match="deepspeed holds a plain value"):
        load_recipe(tmp_path / "a.yaml", ["deepspeed.stage=2"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train:\n  epochs: 1\n  epochs: 2\n", "`epochs` is given twice"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("train: [\n", "not a YAML file"),
        ("!!python/object/apply:os.system ['true']\n", "not a YAML file"),
    ],
)
def test_bad_files(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        load_recipe(path)
    assert "recipe.yaml" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe at .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_recipe(tmp_path / "empty.yaml") == Recipe()


@given(st.sampled_from(recipe_keys()), st.data())
def test_one_slip_of_the_key_is_put_right(key: str, data: st.DataObject) -> None:
    """Drop one letter of any longer key.

    The error proposes the key itself (or another one as near).
    """
    section, _, leaf = key.rpartition(".")
    if len(leaf) < 6:
        return
    place = data.draw(st.integers(0, len(leaf) - 1))
    misspelt = ".".join(part for part in (section, leaf[:place] + leaf[place + 1 :]) if part)
    if misspelt in recipe_keys():
        return
    with pytest.raises(UserError, match="did you mean") as caught:
        load_recipe(None, [f"{misspelt}=1"])
    assert f"`{key}`" in str(caught.value) or leaf[:4] in str(caught.value)


def test_values_do_not_change_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_recipe({}).train.epochs = 1.0  # type: ignore[misc]


def test_the_page_about_the_recipe_is_up_to_date() -> None:
    from shared.recipe.docs import page

    written = Path(__file__).resolve().parents[3] / "docs" / "recipe.md"
    assert written.read_text(encoding="utf-8") == page(), (
        "run: python -m shared.recipe.docs > docs/recipe.md"
    )


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "root.yaml").write_text("lora: {r: 8, targets: [q_proj]}\noutput: root\n")
    (tmp_path / "base.yaml").write_text("extends: below/root.yaml\nlora:\n  alpha: 4\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: base.yaml\nlora:\n  targets: [v_proj]\nlosses:\n  layer: [2, 3]\n")
    recipe = load_recipe(path, ["losses.layer=7"])
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.targets) == (8, 4, ["v_proj"])
    assert (recipe.output, recipe.losses.layers) == ("root", (7,))
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert "extends" not in yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("recipe.yaml", "leads back"),
        ("other.yaml", "leads back"),
        ("nowhere.yaml", "names no file"),
        ("[a.yaml, b.yaml]", "names one recipe file"),
    ],
)
def test_what_cannot_be_extended(base: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: recipe.yaml\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"extends: {base}\n")
    with pytest.raises(UserError, match=line):
        load_recipe(path)


def test_a_mistake_in_the_base_is_found(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epoch: 3}\n")
    (tmp_path / "recipe.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(UserError, match=r"did you mean `train.epochs`"):
        load_recipe(tmp_path / "recipe.yaml")


def test_every_key_is_described_once_for_page_terminal_and_editors() -> None:
    from shared.recipe import docs

    keys = [key for section in (None, *docs.sections()) for key in docs.keys_of(section)]
    assert [key.name for key in keys] == recipe_keys()
    assert all(f"{key.name}={key.default}" in "\n".join(docs.lines()) for key in keys)
    schema = json.loads(docs.schema())
    described = schema["properties"] | {
        f"{section}.{name}": field
        for section, model in docs.sections().items()
        for name, field in schema["$defs"][model.__name__]["properties"].items()
    }
    for key in keys:
        assert " ".join(described[key.name]["description"].split()) == key.meaning
    assert schema["additionalProperties"] is False


def test_other_projects_names_lead_to_a_valid_key() -> None:
    """Names of PEFT, transformers, LLaMA-Factory and LLaVA, wherever they are written."""
    from shared.recipe.other_names import OTHER_NAMES

    keys = recipe_keys()
    for name, key in OTHER_NAMES.items():
        assert key in keys
        assert name not in keys
        for place in ("", "lora.", "train."):
            if f"{place}{name}" in keys:
                continue  # a name of ours
            with pytest.raises(UserError, match=rf"`{place}{name}`; did you mean `{key}`\?"):
                load_recipe(None, [f"{place}{name}=1"])


def test_peft_s_and_the_trainer_s_own_fields_lead_somewhere() -> None:
    """Their names as the installed libraries have them: the table holds none that is made up."""
    import dataclasses
    import inspect

    from peft import LoraConfig
    from transformers import EarlyStoppingCallback, TrainingArguments

    from shared.recipe.other_names import OTHER_NAMES

    real = {field.name for kind in (LoraConfig, TrainingArguments) for field in
            dataclasses.fields(kind)}  # fmt: skip
    real |= set(inspect.signature(EarlyStoppingCallback).parameters)
    expected = {
        "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora",
        "init_lora_weights", "output_dir", "num_train_epochs", "per_device_train_batch_size",
        "gradient_accumulation_steps", "lr_scheduler_type", "bf16", "save_total_limit",
        "metric_for_best_model", "dataloader_num_workers", "hub_model_id",
        "early_stopping_patience", "load_best_model_at_end", "dataloader_prefetch_factor",
        "warmup_steps", "fp16", "use_cpu",
    }  # fmt: skip
    assert expected <= real
    assert expected <= set(OTHER_NAMES)


def test_a_fault_is_blamed_on_what_set_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {epochs: -1}\n")
    with pytest.raises(UserError, match=rf"^{file}: `train\.epochs` is -1"):
        load_recipe(file)
    with pytest.raises(UserError, match=r"^override `train\.epochs=-2`: `train\.epochs` is -2"):
        load_recipe(file, ["train.epochs=-2"])
    with pytest.raises(UserError, match=r"^override `lora\.rank=4`: unknown key"):
        load_recipe(file, ["lora.rank=4", "train.epochs=1"])


def test_one_name_stands_for_a_list_of_one() -> None:
    recipe = load_recipe(
        None, ["evaluation.methods=greedy", "lora.targets=q_proj", "train.report_to=wandb"]
    )
    assert recipe.evaluation.methods == ["greedy"]
    assert recipe.lora.targets == ["q_proj"]
    assert recipe.train.report_to == ["wandb"]
    assert load_recipe(None, ["targets.teacher=unimed-l"]).targets.teacher == "unimed-l"
    assert load_recipe(None).lora.targets == "all-linear"
