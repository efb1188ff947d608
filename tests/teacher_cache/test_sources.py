"""What `--images` may name: a folder, a file, a slice of one, a glob, a data set file."""

import json

import pytest

from shared.errors import UserError
from teacher_cache.sources import find_images
from tests.fixtures.images import colour_picture, encoded, image_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path):
    image_folder(tmp_path / "images", 3)
    deep = tmp_path / "images" / "deep"
    deep.mkdir()
    for name in (
        "scan",
        "scan.dcm",
        ".hidden.png",
        "notes.txt",
        "table.csv",
        "DICOMDIR",
        "Thumbs.db",
    ):
        (deep / name).write_bytes(encoded(colour_picture(), "PNG"))
    (tmp_path / "images" / ".thumbnails").mkdir()
    (tmp_path / "images" / ".thumbnails" / "a.png").write_bytes(b"x")
    return tmp_path / "images"


def names(found):
    return [str(reference).rpartition("/")[2] for reference in found]


def test_a_folder_is_searched_through_in_a_fixed_order(folder):
    found = names(find_images(str(folder)))
    assert found == ["scan", "scan.dcm", "image000.png", "image001.png", "image002.png"]


def test_one_file_and_one_slice(folder):
    assert names(find_images(str(folder / "image001.png"))) == ["image001.png"]
    [reference] = find_images(f"{folder / 'image001.png'}#frame=0")
    assert (reference.path.name, reference.part) == ("image001.png", "frame=0")


def test_a_file_whose_name_holds_a_mark(folder):
    (folder / "case#1.png").write_bytes(b"x")
    assert names(find_images(str(folder / "case#1.png"))) == ["case#1.png"]


def test_a_glob_goes_round_a_circle_of_links_once(folder):
    (folder / "deep" / "loop").symlink_to("..")
    (folder / "deep" / "gone.png").symlink_to("nowhere")
    found = find_images(str(folder / "**" / "*.png"))
    assert names(found) == ["gone.png", "image000.png", "image001.png", "image002.png"]
    assert str(found[1].path) == str(folder / "image000.png")


def test_a_store_among_its_images_is_passed_over(folder):
    inside = folder / "store" / "teacher-0123" / "segments" / "ab"
    inside.mkdir(parents=True)
    for group in (inside, *inside.parents[:2]):
        (group / "zarr.json").write_text("{}")
    (inside / "key").write_bytes(b"x")
    assert "key" not in names(find_images(str(folder)))
    assert len(find_images(str(folder))) == 5


def test_globs(folder):
    assert names(find_images(str(folder / "image*.png"))) == [
        "image000.png",
        "image001.png",
        "image002.png",
    ]
    assert names(find_images(str(folder / "**" / "scan*"))) == ["scan", "scan.dcm"]


def write_set(path, images):
    records = [
        {
            "id": str(number),
            "image": image,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "This."},
            ],
        }
        for number, image in enumerate(images)
    ]
    path.write_text(
        json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records))
    )
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_data_set_file_names_each_image_once(folder, tmp_path, suffix):
    images = ["image001.png", "image000.png", "image001.png", "deep/scan#frame=0"]
    found = find_images(write_set(tmp_path / f"set{suffix}", images), str(folder))
    assert names(found) == ["image001.png", "image000.png", "scan#frame=0"]
    beside = find_images(write_set(folder / f"set{suffix}", images))
    assert names(beside) == names(found)


def test_images_that_a_data_set_lacks_are_counted_and_named(folder, tmp_path):
    data = write_set(
        tmp_path / "set.json", ["image000.png", *(f"gone{number}.png" for number in range(5))]
    )
    with pytest.raises(
        UserError, match=r"names 5 images that are not there \(first: .*gone0.*gone1.*gone2\.png\)"
    ) as e:
        find_images(data, str(folder))
    assert "--image-root" in str(e.value)


def test_what_names_nothing_is_told(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "no*.png"):
        with pytest.raises(UserError, match="no images at"):
            find_images(str(where))
    with pytest.raises(UserError, match="belongs to a data set file"):
        find_images(str(folder), str(folder))
