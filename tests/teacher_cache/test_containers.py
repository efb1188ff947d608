"""Images inside tars, parquet files and buckets: found, named by their bytes, built, counted."""

import hashlib
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from shared.imaging.keys import content_key, content_keys
from teacher_cache.cli import app
from teacher_cache.containers.buckets import ObjectImage
from teacher_cache.distinct import distinct_images
from teacher_cache.sources import find_images
from tests.fixtures.containers import s3_client, write_table, write_tar
from tests.fixtures.images import (
    colour_picture,
    dicom_bytes,
    encoded,
    image_folder,
    nifti_bytes,
    picture,
)
from tests.fixtures.s3 import s3_server, use
from tests.fixtures.tiny_teacher import arguments, records, tiny_weights

PNGS = [encoded(colour_picture(seed=seed), "PNG") for seed in range(5)]


def sha(data):
    return hashlib.sha256(data).digest()


def names(found):
    return [str(reference).rpartition("/")[2] for reference in found]


def cache(*line):
    return CliRunner().invoke(app, [str(word) for word in line])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


# folders


@pytest.mark.unit
def test_links_that_meet_again_and_again_are_entered_once(tmp_path):
    """A ladder of 40 folders, two links from each to the next: 2^40 ways down."""
    steps = [tmp_path / "images" / f"{number:02}" for number in range(40)]
    for step in steps:
        step.mkdir(parents=True)
    for step, following in pairwise(steps):
        (step / "a").symlink_to(following)
        (step / "b").symlink_to(following)
    (steps[-1] / "deep.png").write_bytes(PNGS[0])
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.png").write_bytes(PNGS[1])
    (steps[3] / "out").symlink_to(tmp_path / "outside")
    (steps[3] / "self.png").symlink_to("self.png")
    assert names(find_images(tmp_path / "images")) == ["far.png", "self.png", "deep.png"]
    # A folder has its own path, whatever link leads there too.
    assert find_images(tmp_path / "images")[-1].path == steps[-1] / "deep.png"


@pytest.mark.unit
def test_only_the_first_so_many(tmp_path):
    image_folder(tmp_path / "images", 4)
    write_tar(tmp_path / "images" / "z.tar", {f"{n}.png": data for n, data in enumerate(PNGS)})
    every = find_images(tmp_path / "images")
    assert len(every) == 9
    for limit in (1, 4, 6, 9, 20):
        assert find_images(tmp_path / "images", limit=limit) == every[:limit]


# tars


@pytest.mark.unit
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_webdataset_is_its_images(tmp_path, form):
    longest = "a" * (90 if form == tarfile.USTAR_FORMAT else 300)
    files = {
        "000.png": PNGS[0],
        "000.json": b"{}",
        "000.cls": b"3",
        "000.txt": b"text",
        f"deep/{longest}.png": PNGS[1],
        "./IM0001": dicom_bytes(picture()),
        ".hidden/x.png": PNGS[2],
        "000.png ": PNGS[3],
    }
    tar = write_tar(tmp_path / "shard-000000.tar", files, form)
    found = find_images(tar)
    assert names(found) == [
        "shard-000000.tar#file=000.png",
        f"{longest}.png",
        "IM0001",
        "shard-000000.tar#file=000.png ",
    ]
    read = [PNGS[0], PNGS[1], files["./IM0001"], PNGS[3]]
    assert [one.read() for one in found] == read
    assert [key for _, key in content_keys(found)] == [sha(data) for data in read]
    # In a folder and by a glob, too.
    assert find_images(tmp_path) == find_images(str(tmp_path / "*-00000?.tar")) == found


@pytest.mark.unit
@pytest.mark.parametrize("cut", ["header", "inside", "mark", "broken"])
def test_a_tar_that_is_cut_or_damaged_is_told_and_what_is_whole_is_read(tmp_path, cut):
    tar = write_tar(tmp_path / "a.tar", {f"{n}.png": data for n, data in enumerate(PNGS)})
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as whole:
        last = whole.getmembers()[-1]
    if cut == "broken":
        data[last.offset + 3] ^= 1  # the header's checksum
    else:
        place = {"header": last.offset + 100, "inside": last.offset_data + 9}
        padded = -(-last.size // 512) * 512
        del data[place.get(cut, last.offset_data + padded) :]
    tar.write_bytes(bytes(data))
    found = distinct_images(find_images(tar), 2)
    kept = PNGS if cut == "mark" else PNGS[:4]
    assert list(found.by_key) == [sha(one) for one in kept]
    [(_, reason)] = found.unopened
    assert "the tar is cut or damaged here" in reason


@pytest.mark.unit
def test_a_packed_tar_is_refused_with_the_way_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    found = distinct_images(find_images(tmp_path), 1)
    assert not found.by_key
    assert [reason.partition(": unpack it")[1] for _, reason in found.unopened] == [
        ": unpack it"
    ] * 2


@pytest.mark.unit
def test_what_is_too_large_for_memory_is_told_and_not_read(tmp_path):
    """A tar with a hole of 1 GiB for a member, and an object of that size."""
    large = tarfile.TarInfo("large.png")
    large.size = (1 << 30) + 1
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(large.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + (1 << 30) + 512 + 1024)
    write_tar(tmp_path / "b.tar", {"0.png": PNGS[0]})
    found = find_images(tmp_path)
    found.append(ObjectImage("s3://bucket", "large.png", large.size, 0, ""))
    named = distinct_images(found, 1)
    assert list(named.by_key) == [sha(PNGS[0])]
    assert ["more than 1 GiB" in reason for _, reason in named.unopened] == [True, True]


@pytest.mark.unit
def test_names_in_a_tar_are_remembered_until_it_changes(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", {"0.png": PNGS[0], "1.png": PNGS[1]})
    os.utime(tar, ns=(10**18, 10**18))
    monkeypatch.setattr("shared.imaging.keys._SETTLED", -(10**18))
    found = find_images(tar)
    first = list(content_keys(found))
    monkeypatch.setattr(type(found[0]), "read", lambda self: pytest.fail("it was read again"))
    assert list(content_keys(find_images(tar))) == first
    monkeypatch.undo()
    write_tar(tar, {"0.png": PNGS[2], "1.png": PNGS[1]})
    assert [key for _, key in content_keys(find_images(tar))] == [sha(PNGS[2]), sha(PNGS[1])]


# parquet


@pytest.mark.unit
def test_the_hubs_parquet_is_its_images(tmp_path):
    rows = [PNGS[0], PNGS[1], PNGS[0], None, {"bytes": None, "path": "a.png"}, PNGS[2]]
    table = write_table(tmp_path / "train.parquet", rows, row_group_size=2)
    found = distinct_images(find_images(table), 2)
    assert list(found.by_key) == [sha(data) for data in PNGS[:3]]
    assert names(found.by_key.values()) == [
        f"train.parquet#row={row},column=image" for row in (0, 1, 5)
    ]
    assert [key for _, key in found.repeated] == [sha(PNGS[0])]
    [(reference, reason)] = found.unopened
    assert "row=4" in str(reference)
    assert "names a file and does not hold its bytes" in reason


@pytest.mark.unit
def test_columns_of_bytes_and_lists(tmp_path):
    table = pyarrow.table({
        "img": pyarrow.array(PNGS[:2], pyarrow.large_binary()),
        "embedding": pyarrow.array([b"x", b"y"]),
        "images": [[{"bytes": PNGS[2], "path": None}], []],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = distinct_images(find_images(tmp_path), 1)
    assert list(found.by_key) == [sha(data) for data in PNGS[:2]]
    assert "a column of lists" in found.unopened[0][1]


@pytest.mark.unit
def test_rows_are_read_in_any_order_by_many_threads(tmp_path):
    data = [bytes([number % 251]) * (100 + number) for number in range(300)]
    table = write_table(tmp_path / "a.parquet", data, row_group_size=70)
    found = find_images(table)
    order = np.random.default_rng(0).permutation(300).tolist() + list(range(300))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: found[row].read(), order))
    assert read == [data[row] for row in order]


@pytest.mark.unit
def test_a_page_that_is_broken_is_told_and_the_rest_is_read(tmp_path):
    data = [np.random.default_rng(row).bytes(3000) for row in range(60)]
    options = {"row_group_size": 20, "use_dictionary": False, "compression": "none"}
    table = write_table(tmp_path / "a.parquet", data, write_page_checksum=True, **options)
    whole = bytearray(table.read_bytes())
    whole[whole.index(data[25]) + 7] ^= 4
    table.write_bytes(bytes(whole))
    found = distinct_images(find_images(table), 1)
    assert list(found.by_key) == [sha(one) for one in data[:20] + data[40:]]
    assert len(found.unopened) == 20
    assert {reason for _, reason in found.unopened} == {
        "the file cannot be read: the parquet file is damaged here: fetch it again"
    }


@pytest.mark.unit
def test_a_table_takes_the_memory_of_a_row_group_and_no_more(tmp_path):
    """40 MB of images in 40 row groups, by arrow's own account; a quarter of it is allowed."""
    data = [np.random.default_rng(row).bytes(40_000) for row in range(1000)]
    table = write_table(tmp_path / "a.parquet", data, row_group_size=25)
    plain = pyarrow.default_memory_pool()
    counted = pyarrow.proxy_memory_pool(plain)
    pyarrow.set_memory_pool(counted)
    try:
        found = distinct_images(find_images(table), 2)
    finally:
        pyarrow.set_memory_pool(plain)
    assert len(found.by_key) == 1000
    assert 25 * 40_000 < counted.max_memory() < 10_000_000


@pytest.mark.unit
def test_a_table_without_images_stays_a_data_set_file(tmp_path):
    image_folder(tmp_path / "images", 2)
    rows = [{"id": "a", "image": "image001.png", "question": "What?", "answer": "This."}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set.parquet")
    [found] = find_images(tmp_path / "set.parquet", str(tmp_path / "images"))
    assert found.path == tmp_path / "images" / "image001.png"
    (tmp_path / "images" / "set.parquet").write_bytes((tmp_path / "set.parquet").read_bytes())
    (tmp_path / "images" / "bad.parquet").write_bytes(b"PAR1")
    assert names(find_images(tmp_path / "images")) == [
        "bad.parquet",
        "image000.png",
        "image001.png",
    ]
    assert "damaged" in distinct_images(find_images(tmp_path / "images"), 1).unopened[0][1]


# builds


@pytest.mark.integration
def test_a_build_over_all_of_them_has_each_image_once(tmp_path, weights):
    """Files, a tar and a table of the same images; targets are bit for bit those of the files."""
    bad = {"bad.png": b"bad", "worse.png": b""}
    paths = image_folder(tmp_path / "files", 5, **bad)
    alone = ("--batch-size", 1)  # the sums of a larger one depend on its images
    line = arguments(tmp_path / "files", tmp_path / "quiet", weights, *alone, "--allow-skips", 2)
    assert cache(*line).exit_code == 0
    inside = {path.name: path.read_bytes() for path in paths}
    inside["volume.nii.gz"] = nifti_bytes(
        np.eye(5, dtype=np.int16)[..., None], np.eye(4), packed=True
    )
    world = tmp_path / "world"
    world.mkdir()
    write_tar(world / "a.tar", inside)
    write_table(world / "b.parquet", [inside["image003.png"], b"bad too", *inside.values()])
    (world / "one.png").write_bytes(inside["image000.png"])
    built = cache(*arguments(world, tmp_path / "store", weights, "--json", *alone))
    assert built.exit_code == 1
    result = json.loads(built.stdout)
    assert (result["images"], result["distinct"]) == (8 + 10 + 1, 5 + 2 + 1 + 1)
    assert (result["encoded"], result["failed"]) == (5, 4)
    assert records(tmp_path / "store") == records(tmp_path / "quiet")
    reasons = {row["image"].rpartition("/")[2]: row["reason"] for row in result["left_out"]}
    assert reasons["a.tar#file=worse.png"] == "the file is empty"
    assert "name its slices" in reasons["a.tar#file=volume.nii.gz"]
    assert "known format" in reasons["b.parquet#row=1,column=image"]
    again = json.loads(cache(*arguments(world, tmp_path / "store", weights, "--json")).stdout)
    assert (again["found"], again["encoded"], again["failed"]) == (5, 0, 4)
    # The keys are those of files: what is built from a container serves the files.
    assert set(records(tmp_path / "store")) == {content_key(path) for path in paths[1:6]}


@pytest.mark.integration
def test_limit_and_resampling_of_a_container(tmp_path, weights):
    tar = write_tar(tmp_path / "a.tar", {f"{n}.png": data for n, data in enumerate(PNGS)})
    line = arguments(tar, tmp_path / "store", weights, "--json")
    assert json.loads(cache(*line, "--limit", 3).stdout)["encoded"] == 3
    planned = json.loads(cache("plan", *line[1:], "--limit", 4).stdout)
    assert (planned["images"], planned["found"], planned["missing"]) == (4, 3, 1)
    assert json.loads(cache(*line).stdout)["encoded"] == 2
    store = ("verify", "--store", tmp_path / "store", "--weights", weights)
    checked = cache(*store, "--images", tar, "--resample", 5, "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["resampled"]["records"] == 5


# buckets


@pytest.fixture(scope="module")
def bucket():
    """A bucket with 1,100 objects in one folder, more than a page of a listing; its environment."""
    with s3_server() as environment:
        client = s3_client(environment)
        for name, data in {
            "images/a.png": PNGS[0],
            "images/deep/b.png": PNGS[1],
            "images/deep/copy.png": PNGS[0],
            "images/deep/.hidden.png": PNGS[2],
            "images/deep/notes.txt": b"text",
            "images/store/zarr.json": b"{}",
            "images/store/segments/c": b"\0",
            "images/bad.png": b"bad",
            "images2/c.png": PNGS[3],
        }.items():
            client.put_object(Bucket="bucket", Key=name, Body=data)
        for number in range(1100):
            client.put_object(Bucket="bucket", Key=f"many/{number:04}.png", Body=b"x")
        client.close()
        yield environment


@pytest.mark.integration
def test_a_folder_of_a_bucket_is_built(bucket, weights, tmp_path, monkeypatch):
    use(bucket, monkeypatch)
    found = find_images("s3://bucket/images/")
    assert [str(one) for one in found] == [
        f"s3://bucket/images/{name}" for name in ("a.png", "bad.png", "deep/b.png", "deep/copy.png")
    ]
    assert [str(one) for one in find_images("s3://bucket/images2/c.png")] == [
        "s3://bucket/images2/c.png"
    ]
    assert len(find_images("s3://bucket/many")) == 1100
    assert len(find_images("s3://bucket")) == 1105
    assert len(find_images("s3://bucket/many", limit=7)) == 7
    line = arguments("s3://bucket/images", tmp_path / "store", weights, "--json")
    built = json.loads(cache(*line).stdout)
    assert (built["images"], built["distinct"], built["encoded"], built["failed"]) == (4, 3, 2, 1)
    assert set(records(tmp_path / "store")) == {sha(PNGS[0]), sha(PNGS[1])}
    checked = cache(
        "verify", "--store", tmp_path / "store", "--weights", weights, "--resample", 2,
        "--images", "s3://bucket/images",
    )  # fmt: skip
    assert checked.exit_code == 0, checked.output


@pytest.mark.integration
def test_what_a_bucket_lacks_or_refuses_is_one_line(bucket, tmp_path, monkeypatch, weights):
    use(bucket, monkeypatch)
    line = arguments("s3://bucket/nowhere", tmp_path / "store", weights)
    assert "no images at s3://bucket/nowhere" in str(cache(*line).exception)
    line = arguments("s3://other/images", tmp_path / "store", weights)
    said = str(cache(*line).exception)
    assert said.startswith("cannot list s3://other/images: ")
    assert "\n" not in said
    client = s3_client(bucket)
    client.put_object(Bucket="bucket", Key="gone/a.png", Body=PNGS[0])
    found = find_images("s3://bucket/gone")
    client.delete_object(Bucket="bucket", Key="gone/a.png")
    client.close()
    assert distinct_images(found, 1).unopened == [
        (found[0], "the file cannot be read: No such file or directory")
    ]


@pytest.mark.unit
def test_an_unknown_scheme_is_one_line():
    with pytest.raises(Exception, match="use a folder or one of s3://"):
        find_images("ftp://host/images")
