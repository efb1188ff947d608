"""Weights are used as they were trained: every tag, and files with or without their settings.

The oracle is open_clip's and timm's own factory, on small random models; nothing is downloaded.
"""

import copy
import json

import pytest
import torch

from shared.errors import UserError
from teacher_cache.settings import Settings, identity_of, settings_of
from teacher_cache.teachers.registry import load_teacher
from teacher_cache.teachers.timm_models import refusal
from teacher_cache.teachers.trained import Trained, stated
from tests.fixtures.teacher_checkpoints import (
    TINY_TIMM,
    open_clip_visual,
    spread,
    timm_trunk,
    use_tiny_architectures,
)

pytestmark = pytest.mark.integration
TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 1, "layers": 1}


def _own_vits():
    """Names of open_clip's registry that are ViTs of its own with a CLS token."""
    import open_clip

    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        if "timm_model_name" not in vision and isinstance(vision.get("layers"), int):
            yield name


def _tiny(config):
    """Return the same configuration with few small layers; what is trained with stays."""
    vision = copy.deepcopy(config["vision_cfg"])
    vision |= {"layers": 1, "width": 64, "head_width": 32, "image_size": 2 * vision["patch_size"]}
    quick = {key: config[key] for key in ("quick_gelu",) if key in config}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT} | quick


@pytest.fixture
def random_registry(monkeypatch):
    """open_clip's registry with every ViT made small, and random weights for each tag."""
    from open_clip import factory

    for name in _own_vits():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, _tiny(factory._MODEL_CONFIGS[name]))
    monkeypatch.setattr(factory, "download_pretrained", lambda config, **_: "random")
    monkeypatch.setattr(factory, "load_checkpoint", lambda *args, **options: None)


def _activation(vit):
    from open_clip.transformer import QuickGELU

    kinds = {type(block.mlp.gelu) for block in vit.transformer.resblocks}
    assert kinds <= {QuickGELU, torch.nn.GELU}
    assert len(kinds) == 1
    return kinds.pop() is QuickGELU


@pytest.mark.filterwarnings("ignore:QuickGELU mismatch")
def test_every_tag_of_open_clip_is_used_as_it_was_trained(random_registry):
    import open_clip

    own, walked, quick = set(_own_vits()), 0, 0
    for name, tag in open_clip.list_pretrained():
        if name not in own or name.startswith("coca"):
            continue
        registered = open_clip.get_pretrained_cfg(name, tag)
        model = open_clip.create_model(
            name, pretrained=tag, force_quick_gelu=registered.get("quick_gelu", False)
        )
        wanted = model.visual.preprocess_cfg
        teacher = load_teacher(f"open_clip:{name}/{tag}")
        found = teacher.preprocessing
        assert (found.mean, found.std, found.interpolation, found.size) == (
            wanted["mean"],
            wanted["std"],
            wanted["interpolation"],
            wanted["size"] if isinstance(wanted["size"], int) else wanted["size"][0],
        ), (name, tag)
        assert _activation(teacher.model) == _activation(model.visual), (name, tag)
        assert teacher.architecture.endswith("-quickgelu") == _activation(model.visual)
        walked, quick = walked + 1, quick + _activation(model.visual)
    assert walked > 90
    assert quick > 30


def test_a_store_finds_the_same_settings_again(random_registry):
    for name in ("ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-H-14-CLIPA/datacomp1b"):
        identity = identity_of(load_teacher(f"open_clip:{name}"), Settings())
        said = settings_of(identity).trained
        again = load_teacher(f"open_clip:{name}", said=said)
        assert again.preprocessing == identity.preprocessing
        assert again.architecture == identity.architecture


def test_the_activation_is_part_of_the_identity(random_registry, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(open_clip_visual("ViT-B-32-quickgelu"), file)
    plain = load_teacher("open_clip:ViT-B-32", str(file), said=Trained(quick_gelu=False))
    quick = load_teacher("open_clip:ViT-B-32", str(file), said=Trained(quick_gelu=True))
    assert plain.weights == quick.weights
    assert (plain.architecture, quick.architecture) == ("ViT-B-32", "ViT-B-32-quickgelu")
    assert (_activation(plain.model), _activation(quick.model)) == (False, True)


def test_a_bare_file_of_which_nothing_is_known_asks(random_registry, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(open_clip_visual("ViT-B-32-quickgelu"), file)
    with pytest.raises(UserError, match=r"--quick-gelu or --no-quick-gelu, or name the tag as"):
        load_teacher("open_clip:ViT-B-32", str(file))
    by_tag = load_teacher("open_clip:ViT-B-32/openai", str(file))
    assert _activation(by_tag.model)
    with pytest.raises(UserError, match="tag openai says quick_gelu True, the command line"):
        load_teacher("open_clip:ViT-B-32/openai", str(file), said=Trained(quick_gelu=False))
    with pytest.raises(UserError, match="has no weights 'nonsense'"):
        load_teacher("open_clip:ViT-B-32/nonsense", str(file))
    assert _activation(load_teacher("open_clip:ViT-B-32-quickgelu", str(file)).model)
    with pytest.raises(UserError, match="the name ViT-B-32-quickgelu says quick_gelu True"):
        load_teacher("open_clip:ViT-B-32-quickgelu", str(file), said=Trained(quick_gelu=False))


def _folder(folder, architecture, preprocess, **model):
    import open_clip

    folder.mkdir(exist_ok=True)
    torch.save(open_clip_visual("ViT-B-32-quickgelu"), folder / "open_clip_pytorch_model.bin")
    config = open_clip.get_model_config(architecture) | model
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return folder


def test_the_configuration_beside_the_weights_decides(random_registry, tmp_path):
    import open_clip

    half = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    folder = _folder(tmp_path / "a", "ViT-B-32", half, quick_gelu=True)
    wanted = open_clip.create_model(f"local-dir:{folder}").visual
    for weights in (folder, folder / "open_clip_pytorch_model.bin"):
        teacher = load_teacher("open_clip:ViT-B-32", str(weights))
        assert teacher.preprocessing.model_dump() == {
            "size": 64,
            "mean": tuple(wanted.preprocess_cfg["mean"]),
            "std": tuple(wanted.preprocess_cfg["std"]),
            "interpolation": wanted.preprocess_cfg["interpolation"],
        }
        assert _activation(teacher.model) == _activation(wanted)
    with pytest.raises(UserError, match=r"the command line says 0\.4,0\.4,0\.4"):
        load_teacher("open_clip:ViT-B-32", str(folder), said=Trained(mean=(0.4, 0.4, 0.4)))
    with pytest.raises(UserError, match=r"open_clip_config\.json says mean .* the tag openai says"):
        load_teacher("open_clip:ViT-B-32/openai", str(folder))
    with pytest.raises(UserError, match="describes another model than ViT-B-16: patch_size is 32"):
        load_teacher("open_clip:ViT-B-16", str(folder))
    _folder(folder, "ViT-B-32", {})  # open_clip's own defaults
    wanted = open_clip.create_model(f"local-dir:{folder}").visual
    teacher = load_teacher("open_clip:ViT-B-32", str(folder))
    assert teacher.preprocessing.mean == wanted.preprocess_cfg["mean"]
    assert _activation(teacher.model) == _activation(wanted)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_teacher("open_clip:ViT-B-32", str(folder))


def test_models_without_weights_of_their_own_ask_for_everything(monkeypatch, tmp_path):
    from open_clip import factory

    tiny = _tiny(factory._MODEL_CONFIGS["ViT-S-32"])
    torch.save(open_clip_visual("ViT-B-32-quickgelu"), tmp_path / "a.pt")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-S-32", tiny)
    with pytest.raises(UserError, match=r"--mean R,G,B, --std R,G,B, --interpolation, --quick-ge"):
        load_teacher("open_clip:ViT-S-32", str(tmp_path / "a.pt"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("0.5,0.5", None), "--mean '0.5,0.5' is not three numbers"),
        (("a,b,c", None), "not three numbers"),
        (("123,116,103", None), "on the scale 0 to 1"),
        ((None, "0,1,1"), "--std"),
        (("nan,0,0", None), "not three numbers"),
    ],
)
def test_colours_of_a_command_line(values, message):
    mean, std = values
    with pytest.raises(UserError, match=message):
        stated(mean, std, None, None)
    assert stated("0.5, 0.4,0.3", None, "bilinear", False) == Trained(
        (0.5, 0.4, 0.3), None, "bilinear", False
    )


def test_named_teachers_refuse_settings_that_are_not_theirs(monkeypatch):
    said = Trained(interpolation="bilinear")
    with pytest.raises(UserError, match="the teacher itself says interpolation bicubic"):
        load_teacher("dinov2-small", said=said)
    rounded = Trained(mean=(0.485, 0.456, 0.406), interpolation="bicubic", quick_gelu=False)
    assert load_teacher("dinov2-small", said=rounded).preprocessing.std[0] == 0.229


def test_models_that_neither_family_serves_say_why():
    with pytest.raises(UserError, match=r"wraps timm's vit_base_patch16_siglip_224, which has no "):
        load_teacher("open_clip:ViT-B-16-SigLIP", "x.pt")
    with pytest.raises(UserError, match=r"patch16_siglip_224 has no CLS token") as caught:
        load_teacher("timm:vit_base_patch16_siglip_224", "x.pt")
    assert "choose one of timm's VisionTransformer" not in str(caught.value)
    with pytest.raises(UserError, match="take timm:vit_base_mci_224"):
        load_teacher("open_clip:MobileCLIP-B", "x.pt")
    assert refusal("vit_base_mci_224") == ""
    with pytest.raises(UserError, match="is a Eva"):
        load_teacher("timm:eva02_base_patch16_clip_224", "x.pt")


# timm's files


def _by_timm(architecture, tensors):
    """Fill a model as timm itself does with a downloaded checkpoint."""
    import timm

    overlay = {"state_dict": dict(tensors), "hf_hub_id": None, "url": ""}
    model = timm.create_model(
        architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
    )
    return model.state_dict()


def _open_clip_names(trunk):
    return {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()} | {
        "visual.head.proj.weight": torch.zeros(8, 64),
        "text.token_embedding.weight": torch.zeros(8, 8),
    }


def _other_grid(trunk):
    positions = spread({"pos_embed": torch.zeros(1, 1 + 7 * 7, 64)})["pos_embed"]
    return trunk | {"pos_embed": positions}


@pytest.mark.parametrize("form", [dict, _open_clip_names, _other_grid])
def test_files_pass_timms_own_filter(tmp_path, form):
    source = form(timm_trunk())
    torch.save(source, tmp_path / "model.pt")
    teacher = load_teacher(f"timm:{TINY_TIMM}", str(tmp_path / "model.pt"))
    wanted = _by_timm(TINY_TIMM, source)
    found = teacher.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def small_timm(monkeypatch):
    """timm's large architectures with one layer, so that a test may fill them."""
    import timm

    create = timm.create_model

    def small(name, **options):
        shape = {} if name == TINY_TIMM else {"depth": 1, "embed_dim": 64, "num_heads": 2}
        return create(name, **shape, **options)

    monkeypatch.setattr(timm, "create_model", small)


def _dinov2(trunk):
    """Facebook's names: masks, and one patch more along each side."""
    return trunk | {"mask_token": torch.zeros(1, 64)}


def _deit3(trunk):
    return {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in trunk.items()
    }


def _radio(trunk):
    """C-RADIO's file: a wide position table, a linear patch embedding, its own prefixes."""
    prefix = "radio_model.model."
    generator = f"{prefix}patch_generator."
    kept = {f"{prefix}{name}": tensor for name, tensor in trunk.items() if "blocks." in name}
    prefixes = trunk["cls_token"].shape[1] + trunk["reg_token"].shape[1]
    return kept | {
        f"{generator}cls_token.token": torch.randn(prefixes, 64),
        f"{generator}pos_embed": torch.randn(1, 24 * 24, 64),
        f"{generator}embedder.weight": torch.randn(64, 3 * 16 * 16),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.input_conditioner.norm_std": torch.ones(3, 1, 1),
        "radio_model.summary_idxs": torch.zeros(1, dtype=torch.long),
    }


@pytest.mark.parametrize(
    ("architecture", "form"),
    [
        ("vit_small_patch14_dinov2", _dinov2),
        ("vit_small_patch14_reg4_dinov2", _dinov2),
        ("deit3_small_patch16_224", _deit3),
        ("flexivit_small", dict),
        ("vit_base_patch16_radio_v3", _radio),
        ("vit_so400m_patch16_radio_v4", _radio),
    ],
)
def test_published_layouts_of_timms_towers(small_timm, tmp_path, architecture, form):
    import timm

    assert refusal(architecture) == ""
    model = timm.create_model(architecture, num_classes=0)
    source = form(spread(model.state_dict()))
    torch.save(source, tmp_path / "model.pt")
    teacher = load_teacher(f"timm:{architecture}", str(tmp_path / "model.pt"))
    wanted, found = _by_timm(architecture, source), teacher.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert teacher.preprocessing.interpolation == model.pretrained_cfg["interpolation"]
    del source[max(source, key=lambda name: "blocks.0" in name)]
    torch.save(source, tmp_path / "model.pt")
    with pytest.raises(UserError, match="the weights are not those of"):
        load_teacher(f"timm:{architecture}", str(tmp_path / "model.pt"))


def test_settings_of_a_timm_file(small_timm, tmp_path):
    import timm

    architecture = "vit_base_patch8_224"  # its tags disagree: ImageNet's mean, and one half
    torch.save(
        spread(timm.create_model(architecture, num_classes=0).state_dict()), tmp_path / "a.pt"
    )
    file = str(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"nothing says with which mean, std .*\.TAG \(") as caught:
        load_teacher(f"timm:{architecture}", file)
    assert "--mean R,G,B, --std R,G,B, or name the tag" in str(caught.value)
    by_tag = load_teacher(f"timm:{architecture}.dino", file).preprocessing
    assert by_tag.mean == (0.485, 0.456, 0.406)
    other = load_teacher(f"timm:{architecture}.augreg_in21k", file).preprocessing
    assert other.mean == (0.5, 0.5, 0.5)
    said = Trained((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))
    bare = load_teacher(f"timm:{architecture}", file, said=said).preprocessing
    assert (bare.mean, bare.std, bare.interpolation) == (said.mean, said.std, "bicubic")
    with pytest.raises(
        UserError, match=r"the tag dino says mean 0\.485,0\.456,0\.406, the command"
    ):
        load_teacher(f"timm:{architecture}.dino", file, said=said)
    with pytest.raises(UserError, match="timm has no weights 'nonsense'"):
        load_teacher(f"timm:{architecture}.nonsense", file)
    config = {"pretrained_cfg": {"mean": [0.3] * 3, "std": [0.4] * 3, "interpolation": "bilinear"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_teacher(f"timm:{architecture}", file).preprocessing
    assert (found.mean, found.std, found.interpolation) == ((0.3,) * 3, (0.4,) * 3, "bilinear")
    config["pretrained_cfg"]["interpolation"] = "nearest"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trained with nearest resizing"):
        load_teacher(f"timm:{architecture}", file)


def test_the_tiny_architectures_of_other_tests_keep_their_settings(monkeypatch, tmp_path):
    use_tiny_architectures(monkeypatch)
    torch.save({f"visual.{k}": v for k, v in open_clip_visual().items()}, tmp_path / "a.pt")
    unimed = load_teacher("unimed-b", str(tmp_path / "a.pt"))
    assert (unimed.architecture, unimed.preprocessing.interpolation) == (
        "ViT-B-16-quickgelu",
        "bicubic",
    )
