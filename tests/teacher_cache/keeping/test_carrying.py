"""Stores carried to a folder, a bucket and a hub of the tests, and back; the card beside them."""

import json
import re
import shutil
import uuid

import pytest
import yaml
from typer.testing import CliRunner

from shared.errors import UserError
from shared.targets.namespace import list_namespaces, quarantine
from shared.targets.segment.scan import scan
from teacher_cache.cli import app
from teacher_cache.keeping.carrying import HubPlace, hub_place, pull, push
from tests.fixtures.hub import TOKEN, running_hub
from tests.fixtures.images import image_folder
from tests.fixtures.s3 import s3_server, use
from tests.fixtures.targets import write_records
from tests.fixtures.tiny_teacher import arguments, records, tiny_weights

ROW = re.compile(r"^\| *([^|]+?) *\| *([^|]*?) *\|$", re.MULTILINE)


def cache(*line):
    return CliRunner().invoke(app, [str(word) for word in line])


def rows_of(card):
    """The tables of two columns of a card."""
    return dict(ROW.findall(card))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def built(tmp_path_factory, weights):
    """A folder of images, one of them bad, and a store of them."""
    folder = tmp_path_factory.mktemp("built")
    image_folder(folder / "images", 5, **{"bad.png": b"bad"})
    line = arguments(folder / "images", folder / "store", weights, "--allow-skips", 1)
    assert cache(*line, "--segment-records", 2).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["folder", "bucket"])
def place(request, server, monkeypatch, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "deep" / "place")
    use(server, monkeypatch)
    return f"s3://bucket/{uuid.uuid4().hex}/targets"


def card_at(place):
    from shared.targets.storage import open_storage

    return open_storage(place).read("README.md").decode()


@pytest.mark.integration
def test_a_store_goes_there_and_back_and_is_what_its_teacher_says(built, place, weights, tmp_path):
    pushed = cache("push", place, "--store", built / "store", "--json")
    assert pushed.exit_code == 0, pushed.output
    [merged] = json.loads(pushed.stdout)["merged"]
    assert (merged["records"], merged["segments"]) == (5, 3)
    pulled = cache("pull", place, "--store", tmp_path / "mine", "--json")
    assert pulled.exit_code == 0, pulled.output
    assert records(tmp_path / "mine") == records(built / "store")
    listed = cache("list", "--store", tmp_path / "mine", "--quarantined", "--json")
    assert [row["reason"][:12] for row in json.loads(listed.stdout)["rows"]] == ["not an image"]
    for store in (place, tmp_path / "mine"):
        checked = cache(
            "verify", "--store", store, "--weights", weights, "--resample", 5,
            "--images", built / "images" / "image*.png", "--json",
        )  # fmt: skip
        assert checked.exit_code == 0, checked.output
        assert json.loads(checked.stdout)["foreign"] == []
        assert json.loads(checked.stdout)["resampled"]["sound"]


@pytest.mark.integration
def test_the_card_says_what_lies_there_and_follows_it(built, place, tmp_path):
    push(str(built / "store"), place)
    [namespace] = list_namespaces(built / "store")
    card = card_at(place)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "other"
    rows = rows_of(card)
    identity = namespace.identity
    assert rows["teacher"] == "timm:test_vit (test_vit)"
    assert rows["licence of its weights"] == namespace.provenance["licence"]
    assert rows["sha256 of its weights"] == identity.weights
    assert rows["fingerprint"] == identity.fingerprint()
    assert rows["geometry"] == "pad"
    assert rows["grid"] == "5x5 patches"
    assert rows["images"].startswith("5 in 3 segments")
    assert rows["images left out"] == "1"
    assert rows["audit"] == "none is given"
    assert str(built) not in card
    write_records(tmp_path / "other", range(3))
    push(str(tmp_path / "other"), place)
    assert card_at(place).count("\n## ") == 2
    pointing = {"value": 0.5, "interval": [0.25, 0.75], "n": 9, "patients": 7}
    teachers = {namespace.name: {"rows": {"E_a": {"pointing": pointing}}}}
    audit = {"schema": 1, "regions": "/home/someone/regions.json", "teachers": teachers}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    again = push(str(built / "store"), place, audit=tmp_path / "audit.json")
    assert (again.merged[0].segments, again.merged[0].already_there) == (0, 5)
    card = card_at(place)
    assert "| E_a | pointing | 0.5000 [0.2500, 0.7500] | 9 | 7 |" in card
    assert "/home" not in card
    (tmp_path / "audit.json").write_text(json.dumps(audit | {"teachers": {}}))
    with pytest.raises(UserError, match="audits nothing"):
        push(str(built / "store"), place, audit=tmp_path / "audit.json")
    (tmp_path / "audit.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"audit\.json is no audit"):
        push(str(built / "store"), place, audit=tmp_path / "audit.json")
    (tmp_path / "audit.json").write_text("[]")
    with pytest.raises(UserError, match=r"audit\.json is no audit"):
        push(str(built / "store"), place, audit=tmp_path / "audit.json")


@pytest.mark.unit
def test_one_teacher_of_several_is_carried(tmp_path):
    for name in ("first", "second"):
        write_records(tmp_path / "store", range(3), teacher=name)
    [one] = push(str(tmp_path / "store"), str(tmp_path / "there"), teacher="first").merged
    assert one.namespace.startswith("first-")
    assert len(list_namespaces(tmp_path / "there")) == 1
    with pytest.raises(UserError, match="second"):
        pull(str(tmp_path / "there"), str(tmp_path / "back"), teacher="second")


@pytest.mark.unit
def test_a_namespace_that_cannot_be_read_stops_no_other_and_is_told(tmp_path):
    for name in ("first", "second"):
        namespace = write_records(tmp_path / "store", range(3), teacher=name)
    (tmp_path / "store" / namespace.name / "zarr.json").write_text("{}")
    for line in (
        ("push", tmp_path / "a", "--store", tmp_path / "store"),
        ("pull", tmp_path / "store", "--store", tmp_path / "b"),
    ):
        done = cache(*line)
        assert done.exit_code == 1
        assert "1 namespaces could not be read" in str(done.exception)
        assert f"{namespace.name} is passed over" in done.output
    assert len(list_namespaces(tmp_path / "a")) == len(list_namespaces(tmp_path / "b")) == 1


@pytest.mark.unit
def test_a_damaged_segment_does_not_go_either_way(tmp_path):
    namespace = write_records(tmp_path / "store", range(3))
    shutil.copytree(tmp_path / "store", tmp_path / "sound")
    [segment] = namespace.segments()
    shard = tmp_path / "store" / namespace.path("segments", segment, "similarity/c/0/0")
    data = bytearray(shard.read_bytes())
    data[7] ^= 16
    shard.write_bytes(bytes(data))
    damaged, to = str(tmp_path / "store"), str(tmp_path / "to")
    for call in (lambda: push(damaged, to), lambda: pull(damaged, to)):
        with pytest.raises(UserError, match="similarity/c/0/0"):
            call()
    with pytest.raises(UserError, match="similarity/c/0/0"):
        push(str(tmp_path / "store"), "hf://clinic/targets")
    pull(str(tmp_path / "sound"), str(tmp_path / "store2"))
    assert not [one for one in scan(tmp_path / "store2") if one.damage]


@pytest.mark.unit
def test_places_that_are_none_are_one_line(tmp_path):
    write_records(tmp_path / "store", range(3))
    with pytest.raises(UserError, match="no target store at"):
        pull(str(tmp_path / "nowhere"), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="no repository of the hub"):
        push(str(tmp_path / "store"), "hf://a/b/c")
    with pytest.raises(UserError, match="leave @REVISION out"):
        push(str(tmp_path / "store"), "hf://a/b@main")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot write to the store"):
        push(str(tmp_path / "store"), str(tmp_path / "file"))


@pytest.mark.integration
def test_a_readme_of_ones_own_stays(built, place, tmp_path):
    from shared.targets.storage import open_storage

    storage = open_storage(place)
    storage.create("README.md", b"# Our lab's targets\n")
    with pytest.raises(UserError, match=r"has a README\.md of its own"):
        push(str(built / "store"), place)
    assert card_at(place) == "# Our lab's targets\n"
    with pytest.raises(UserError):
        list_namespaces(place)


@pytest.mark.integration
def test_a_card_that_loses_its_audit_says_so(built, tmp_path, capsys):
    [namespace] = list_namespaces(built / "store")
    pointing = {"value": 0.5, "interval": [0.25, 0.75], "n": 9, "patients": 7}
    teachers = {namespace.name: {"rows": {"E_a": {"pointing": pointing}}}}
    audit = {"schema": 1, "regions": "regions.json", "teachers": teachers}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    push(str(built / "store"), str(tmp_path / "there"), audit=tmp_path / "audit.json")
    push(str(built / "store"), str(tmp_path / "there"))
    assert "loses its audit" in capsys.readouterr().err


@pytest.mark.unit
def test_the_hub_is_meant_only_where_it_is_named():
    assert hub_place("clinic/targets") is None
    assert hub_place("s3://clinic/targets") is None
    assert hub_place("hf://clinic/targets") == HubPlace("clinic/targets")
    assert hub_place("hf://datasets/clinic/targets@v1") == HubPlace("clinic/targets", "v1")
    assert hub_place("hf://targets") == HubPlace("targets")


@pytest.fixture
def hub(monkeypatch):
    """A hub on the loopback that huggingface_hub's own requests go to."""
    with running_hub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.mark.integration
@pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own call of its HTTP client
def test_a_store_goes_to_the_hub_and_comes_back(built, hub, tmp_path, weights, monkeypatch):
    store = tmp_path / "store"
    shutil.copytree(built / "store", store)
    [namespace] = list_namespaces(store)
    quarantine(namespace, bytes(32), "a reason")  # a file whose name is long
    (store / namespace.name / ".lease").write_bytes(b"of this machine")
    pushed = cache("push", "hf://clinic/targets", "--store", store)
    assert pushed.exit_code == 0, pushed.output
    assert "derived data" in pushed.output
    assert "uploaded: clinic/targets" in pushed.output
    assert hub.visibility == {"clinic/targets": "private"}
    assert hub.kinds == {"clinic/targets": "dataset"}
    arrived = hub.files["clinic/targets"]
    lies = {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    card = arrived.pop("README.md").decode()
    assert arrived == lies
    assert rows_of(card)["fingerprint"] == namespace.identity.fingerprint()
    hub.files["clinic/targets"]["README.md"] = card.encode()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    pulled = cache("pull", "hf://clinic/targets", "--store", tmp_path / "mine")
    assert pulled.exit_code == 0, pulled.output
    assert records(tmp_path / "mine") == records(built / "store")
    checked = cache(
        "verify", "--store", tmp_path / "mine", "--weights", weights, "--resample", 2,
        "--images", built / "images" / "image*.png",
    )  # fmt: skip
    assert checked.exit_code == 0, checked.output


@pytest.mark.integration
def test_a_hub_that_refuses_or_does_not_answer_is_one_line(built, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"upload of .* to hf://clinic/targets failed") as no:
        push(str(built / "store"), "hf://clinic/targets")
    assert "\n" not in str(no.value)
    assert not hub.files
    with pytest.raises(UserError, match="hf://clinic/nothing could not be fetched") as no:
        pull("hf://clinic/nothing", str(tmp_path / "mine"))
    assert "\n" not in str(no.value)
    assert not (tmp_path / "mine").exists()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="hf://clinic/targets could not be fetched"):
        pull("hf://clinic/targets", str(tmp_path / "mine"))


@pytest.mark.integration
def test_a_store_in_a_bucket_does_not_go_to_the_hub(built, server, monkeypatch):
    use(server, monkeypatch)
    place = f"s3://bucket/{uuid.uuid4().hex}"
    push(str(built / "store"), place)
    with pytest.raises(UserError, match="only a store in a folder goes to the hub"):
        push(place, "hf://clinic/targets")
