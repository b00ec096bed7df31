"""Image files: orientation, modes, and one sentence for each that cannot be read."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevtx.errors import InputError, OutputError, SourceError
from edgevtx.images import read_image, write_image


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    """RGB with a different colour in each corner, smooth enough for JPEG."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return (np.stack([x, y, 1 - x], -1) * 250).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Stored as a camera held that way stores it, an image must come back upright."""
    upright = Image.fromarray(picture())
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 98, "subsampling": 0} if suffix == ".jpg" else {}
    image.save(tmp_path / f"a{suffix}", exif=exif, **options)
    found = read_image(tmp_path / f"a{suffix}")
    assert found.shape == (32, 48, 3)
    np.testing.assert_allclose(found.astype(int), picture()[..., ::-1], atol=6)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"), ("L", ".png"), ("1", ".png"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png"),
        ("RGB", ".bmp"), ("RGB", ".webp"), ("RGB", ".ppm"), ("P", ".gif"), ("CMYK", ".tif"), ("RGB", ".tga"),
    ],
)  # fmt: skip
def test_modes_become_bgr(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    options = {"lossless": True} if suffix == ".webp" else {}
    image.save(tmp_path / f"a{suffix}", **options)
    want = np.asarray(Image.open(tmp_path / f"a{suffix}").convert("RGB"))[..., ::-1]
    found = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found, want)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").astype(int), picture()[..., ::-1], atol=8)


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    pixels = np.dstack([picture(), np.zeros((32, 48), np.uint8)])  # fully transparent
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture()[..., ::-1])


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).quantize(16)
    want = np.asarray(image.convert("RGB"))[..., ::-1]
    image.save(tmp_path / "a.png", transparency=3)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), want)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    if suffix == ".pgm":  # by hand: older Pillow reads 16-bit PGM but does not write it
        (tmp_path / "a.pgm").write_bytes(b"P5\n48 32\n65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a{suffix}")
    found = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found, np.stack([(values >> 8).astype(np.uint8)] * 3, -1))


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), (values >> 8).astype(np.uint8)[..., ::-1])


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "floats"), (np.int32, "32-bit whole numbers")])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: Any, said: str) -> None:
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=f"holds {said}, whose range"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(
        tmp_path / f"a{suffix}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == ".webp" else {}),
    )
    assert (read_image(tmp_path / f"a{suffix}") == (0, 0, 255)).all()


# -- what cannot be read -----------------------------------------------------------------------------------------


def damaged(folder: Path, kind: str) -> Path:
    path = folder / "a.jpg"
    image = Image.fromarray(picture(300, 400))
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no image")
    elif kind == "postscript":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    elif kind == "truncated jpeg":
        image.save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "truncated png":
        image.save(path, format="PNG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "flipped png":
        image.save(path, format="PNG")
        data = bytearray(path.read_bytes())
        data[60:90] = bytes(30)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("empty", "is not an image"),
        ("text", "is not an image"),
        ("postscript", "is not an image"),
        ("truncated jpeg", "damaged or truncated"),
        ("truncated png", "damaged or truncated"),
        ("flipped png", "damaged or truncated"),
    ],
)
def test_each_bad_file_gets_one_sentence(tmp_path: Path, kind: str, said: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(SourceError, match=said) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_limit_on_pixels_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SourceError, match="decompression bomb"):
        read_image(tmp_path / "a.png")


# -- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg", ".JPEG"])
@pytest.mark.parametrize("grey", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, grey: bool) -> None:
    frame = picture()[..., 0] if grey else picture()
    write_image(tmp_path / f"a{suffix}", frame)
    tolerance = 12 if suffix.lower() in (".jpg", ".jpeg") else 0
    want = np.stack([frame] * 3, -1) if grey else frame
    np.testing.assert_allclose(read_image(tmp_path / f"a{suffix}").astype(int), want, atol=tolerance)
    assert [item.name for item in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.pdf", "a.eps"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"must end in \.jpg"):
        write_image(tmp_path / name, picture())
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        write_image(tmp_path / "missing" / "a.png", picture())
    with pytest.raises(InputError, match="float64"):
        write_image(tmp_path / "a.png", np.zeros((4, 4, 3)))


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", picture())
    before = (tmp_path / "a.png").read_bytes()

    def full(self: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_image(tmp_path / "a.png", picture(10, 10))
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_images_need_no_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    write_image(tmp_path / "a.png", picture())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())
