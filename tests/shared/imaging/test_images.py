"""Opening images.

Every kind as it should look, every broken kind refused with a reason, nothing black in silence.
"""

import contextlib
import gzip
import hashlib
import io
import pickle
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from shared.imaging.images import open_image, parse_reference
from shared.imaging.keys import content_key
from shared.imaging.pixels import UnreadableImage
from tests.fixtures.images import colour_picture, encoded, picture

pytestmark = pytest.mark.unit
RGB = colour_picture()
LOSSLESS = {
    "png": encoded(RGB, "PNG"),
    "bmp": encoded(RGB, "BMP"),
    "ppm": encoded(RGB, "PPM"),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "jp2": encoded(RGB, "JPEG2000"),
    "tiff": encoded(RGB, "TIFF"),
    "lzw.tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "deflate.tiff": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "packbits.tiff": encoded(RGB, "TIFF", compression="packbits"),
}
LOSSY = {
    "jpg": encoded(RGB, "JPEG"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "jpeg.tiff": encoded(RGB, "TIFF", compression="jpeg"),
    "webp": encoded(RGB, "WEBP"),
    "gif": encoded(RGB.quantize(), "GIF"),
}


def opened(tmp_path, data, name="image.bin", part=None, **options):
    path = tmp_path / name
    path.write_bytes(data)
    return np.asarray(
        open_image(path if part is None else parse_reference(f"{path}#{part}"), **options)
    )


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(tmp_path, kind):
    assert np.array_equal(opened(tmp_path, LOSSLESS[kind]), np.asarray(RGB))


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_the_pixels(tmp_path, kind):
    found = opened(tmp_path, LOSSY[kind])
    assert np.abs(found.astype(int) - np.asarray(RGB)).mean() < 12


@pytest.mark.parametrize("name", ["scan.dcm", "scan.nii.gz", "scan.txt", "scan", "scan.png"])
def test_the_name_does_not_matter(tmp_path, name):
    assert np.array_equal(opened(tmp_path, LOSSLESS["bmp"], name), np.asarray(RGB))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize(("low", "high"), [(0, 4095), (31000, 31200), (0, 65535)])
def test_sixteen_bits_are_scaled_from_their_own_range(tmp_path, form, low, high):
    gray = picture().astype(float)
    share = (gray - gray.min()) / np.ptp(gray)
    levels = (low + share * (high - low)).round().astype(np.uint16)
    found = opened(tmp_path, encoded(Image.fromarray(levels), form))
    first, last = np.percentile(levels, (0.5, 99.5))
    expected = ((levels - first) / (last - first) * 255).clip(0, 255)
    assert found.shape == (*gray.shape, 3)
    assert np.abs(found[..., 0] - expected).max() <= 0.501
    assert (found == found[..., :1]).all()


def test_floating_point_tiff_with_holes(tmp_path):
    values = picture().astype(np.float32) / 3 - 20
    values[5, 7] = np.nan
    found = opened(tmp_path, encoded(Image.fromarray(values), "TIFF"))
    assert found[5, 7].tolist() == [0, 0, 0]
    assert found.max() == 255


def test_palette_gray_and_bilevel(tmp_path):
    palette = RGB.quantize(32)
    assert np.array_equal(
        opened(tmp_path, encoded(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )
    gray = Image.fromarray(picture())
    assert np.array_equal(opened(tmp_path, encoded(gray, "PNG"))[..., 1], picture())
    bits = gray.convert("1")
    assert np.array_equal(opened(tmp_path, encoded(bits, "PNG"))[..., 2], np.asarray(bits) * 255)


def test_cmyk_jpeg(tmp_path):
    found = opened(tmp_path, encoded(RGB.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - np.asarray(RGB)).mean() < 8


def test_transparent_pixels_are_black_and_half_transparent_ones_half(tmp_path):
    alpha = np.zeros((72, 96), np.uint8)
    alpha[:, 32:64], alpha[:, 64:] = 128, 255
    image = RGB.copy()
    image.putalpha(Image.fromarray(alpha))
    found = opened(tmp_path, encoded(image, "PNG")).astype(float)
    assert (found[:, :32] == 0).all()
    assert np.abs(found[:, 32:64] - np.asarray(RGB)[:, 32:64] * (128 / 255)).max() <= 1
    assert np.array_equal(found[:, 64:], np.asarray(RGB)[:, 64:])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_image_of_transparent_pixels_alone_is_refused_since_it_would_be_black(tmp_path, mode):
    image = RGB.convert(mode)
    image.putalpha(0)
    with pytest.raises(UnreadableImage, match="every pixel is transparent"):
        opened(tmp_path, encoded(image, "PNG"))


def test_transparent_palette_entry(tmp_path):
    palette = RGB.quantize(16)
    found = opened(tmp_path, encoded(palette, "PNG", transparency=3))
    gone = np.asarray(palette) == 3
    assert gone.any()
    assert (found[gone] == 0).all()
    assert np.array_equal(found[~gone], np.asarray(palette.convert("RGB"))[~gone])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = opened(tmp_path, encoded(RGB, "PNG", exif=exif))
    # Tag 274 of the EXIF standard: how the stored rows and columns lie in the upright picture.
    stored = np.asarray(RGB)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    assert np.array_equal(found, upright)
    assert np.array_equal(
        found, np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "image.bin")))
    )


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PNG", {})]
)
def test_frames(tmp_path, form, options):
    frames = [colour_picture(seed=seed).quantize(64).convert("RGB") for seed in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    tolerance = 3 if form == "GIF" else 0
    for number, frame in enumerate(frames):
        found = opened(tmp_path, data, part=f"frame={number}")
        assert np.abs(found.astype(int) - np.asarray(frame)).max() <= tolerance
    assert np.array_equal(opened(tmp_path, data), opened(tmp_path, data, part="frame=0"))
    with pytest.raises(UnreadableImage, match="has 3 frames"):
        opened(tmp_path, data, part="frame=3")
    with pytest.raises(UnreadableImage, match="does not name a frame"):
        opened(tmp_path, data, part="axial=1")


def png_header(width, height):
    """A valid PNG that claims `width` x `height` pixels and holds none of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


BAD = {
    "empty": b"",
    "one byte": b"\x89",
    "text": b"not an image, only words\n" * 40,
    "html": b"<!doctype html><html><body>404</body></html>",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(1).bytes(4096),
    "pickle": pickle.dumps(Exploit()),
    "pickle of pixels": pickle.dumps(picture()),
    "gzip of text": gzip.compress(b"words " * 100),
    "broken gzip": gzip.compress(np.random.default_rng(2).bytes(9000))[:2000],
    "zip": b"PK\x03\x04" + bytes(100),
    "pdf": b"%PDF-1.7\n" + bytes(500),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "bomb": png_header(60_000, 60_000),
    "no pixels": png_header(0, 10),
    "dicom mark alone": bytes(128) + b"DICM",
    "dicom mark, then noise": bytes(128) + b"DICM" + np.random.default_rng(3).bytes(2000),
    "nifti mark, then zeros": bytes(344) + b"n+1\0" + bytes(3000),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_refused(tmp_path, kind):
    with pytest.raises(UnreadableImage) as caught:
        opened(tmp_path, BAD[kind], part="axial=0" if "nifti" in kind else None)
    reason = str(caught.value)
    assert reason
    assert "\n" not in reason
    assert str(tmp_path) not in reason  # it goes into a list that others read
    assert "image.bin" not in reason


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "nothing.png")


def test_pixel_cap(tmp_path):
    assert opened(tmp_path, LOSSLESS["png"], max_pixels=96 * 72).shape == (72, 96, 3)
    with pytest.raises(UnreadableImage, match="96 x 72 pixels are more"):
        opened(tmp_path, LOSSLESS["png"], max_pixels=96 * 72 - 1)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, "u2"), (7, "u2"), (65535, "u2"), (0, "u1"), (255, "u1"), (3, "i4"), (2, "f4")],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_picture_of_one_value_is_refused_since_it_says_nothing(tmp_path, value, kind, form):
    if form == "PNG" and kind in ("i4", "f4"):
        pytest.skip("no such PNG")
    with pytest.raises(UnreadableImage, match=f"every pixel has the value {value}"):
        opened(tmp_path, encoded(Image.fromarray(np.full((9, 9), value, kind)), form))


def test_a_picture_of_one_colour_is_refused(tmp_path):
    with pytest.raises(UnreadableImage, match=r"every pixel has the value \(1, 2, 3\)"):
        opened(tmp_path, encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG"))


@pytest.mark.parametrize(("width", "height"), [(6000, 30), (30, 6000)])
def test_a_mere_line_is_refused(tmp_path, width, height):
    with pytest.raises(UnreadableImage, match=f"{width} x {height} pixels: one side is more than"):
        opened(tmp_path, encoded(Image.new("L", (width, height)), "PNG"))
    assert opened(tmp_path, encoded(colour_picture(64 * 5, 5), "PNG")).shape == (5, 320, 3)


@pytest.mark.parametrize("kind", [*LOSSLESS, *(f"lossy {kind}" for kind in LOSSY), "sixteen bits"])
def test_a_truncated_file_is_refused_or_complete_never_another_picture(tmp_path, kind):
    sixteen = encoded(Image.fromarray(picture().astype(np.uint16) * 200), "PNG")
    data = (
        sixteen
        if kind == "sixteen bits"
        else {**LOSSLESS, **{f"lossy {k}": v for k, v in LOSSY.items()}}[kind]
    )
    whole = opened(tmp_path, data)
    refused = 0
    for share in (0.01, 0.05, 0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 0.97, 0.99, 0.999):
        try:
            found = opened(tmp_path, data[: int(len(data) * share)])
        except UnreadableImage:
            refused += 1
        else:
            assert np.array_equal(found, whole), share
    assert refused >= 8


@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg"])
def test_a_jpeg_whose_tail_a_crash_left_as_zeros_is_refused(tmp_path, kind):
    data = LOSSY[kind]
    with pytest.raises(UnreadableImage):
        opened(tmp_path, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def test_a_jpeg_with_a_thumbnail_inside(tmp_path):
    """The end marker of the thumbnail is not the picture's."""
    exif = Image.Exif()
    exif[0x010E] = "x"
    data = encoded(RGB, "JPEG", exif=exif)
    thumbnail = encoded(RGB.resize((16, 12)), "JPEG")
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    inside = data[:2] + segment + data[2:]
    assert np.array_equal(opened(tmp_path, inside), opened(tmp_path, data))
    cut = len(segment) + len(data) // 2
    with pytest.raises(UnreadableImage):
        opened(tmp_path, inside[:cut] + bytes(len(inside) - cut))


@pytest.mark.parametrize("kind", ["png", "lzw.tiff", "deflate.tiff"])
def test_bit_flips_never_crash(tmp_path, kind):
    data = bytearray(LOSSLESS[kind])
    random = np.random.default_rng(5)
    for place in random.integers(0, len(data), 60):
        flipped = (
            bytes(data[:place])
            + bytes([data[place] ^ (1 << random.integers(8))])
            + bytes(data[place + 1 :])
        )
        with contextlib.suppress(UnreadableImage):
            assert opened(tmp_path, flipped).ndim == 3


def test_threads_leave_the_warning_filters_alone(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(LOSSLESS["png"])
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [open_image(path) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_content_key_vector(tmp_path):
    """The vector of docs/architecture.md: anyone can check it with `sha256sum`."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert (
        content_key(path).hex()
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert content_key(path, "frame=12") == hashlib.sha256(b"abc\0frame=12").digest()
    copy = tmp_path / "renamed.png"
    copy.write_bytes(b"abc")
    assert content_key(copy) == content_key(path)
    assert content_key(path, "") != content_key(path)


def test_content_key_reads_large_files_in_pieces(tmp_path):
    path = tmp_path / "large.bin"
    data = np.random.default_rng(0).bytes(3_000_001)
    path.write_bytes(data)
    assert content_key(path) == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ("scan.nii.gz#axial=90", "scan.nii.gz", "axial=90"),
        ("a/b.dcm#frame=3", "a/b.dcm", "frame=3"),
        ("case#7.png", "case#7.png", None),
        ("case#7.tif#frame=1", "case#7.tif", "frame=1"),
        ("set#a=1/scan.png", "set#a=1/scan.png", None),
        ("plain.png", "plain.png", None),
    ],
)
def test_references(tmp_path, text, path, part):
    found = parse_reference(text)
    assert (str(found.path), found.part) == (path, part)
    assert str(found) == text
    assert parse_reference(text, tmp_path).path == tmp_path / path


def test_an_open_file_handle_is_not_kept(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(LOSSLESS["png"])
    image = open_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), np.asarray(RGB))
    assert isinstance(image, Image.Image)
    assert io.BytesIO(encoded(image, "PNG")).read(4) == b"\x89PNG"
