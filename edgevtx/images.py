"""Image files <-> frames, with Pillow alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import OutputError, SourceError
from edgevtx.preprocess import check_frame

if TYPE_CHECKING:
    from PIL import Image

# Pillow knows more, but some of those formats start other programs (EPS runs Ghostscript)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
_JPEG_QUALITY = 92


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as a frame (H,W,3) uint8 BGR, turned upright by its EXIF orientation.

    Grey is repeated over the channels; palettes are looked up; CMYK and other colour spaces are converted to RGB;
    alpha is dropped, as the reference processors' `convert("RGB")` does; of 16-bit values the high byte is kept; of
    an animation the first frame. Raises `SourceError` where the file is missing, no image, truncated, larger than
    Pillow's limit on pixels (a decompression bomb), or holds 32-bit or float pixels, whose range no rule tells.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the path")
    if path.is_dir():
        raise SourceError(f"{path} is a folder, not an image; name one file in it")
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            source_format = image.format
            upright = ImageOps.exif_transpose(image)
            return _to_bgr(upright, source_format, path)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise SourceError(f"{path} is not an image that can be read; it must be one of {kinds}") from None
    except Image.DecompressionBombError as error:
        raise SourceError(f"{path} is refused as a possible decompression bomb: {error}; scale it down") from None
    except PermissionError:
        raise SourceError(f"{path} may not be read by this user; change its permissions") from None
    except SourceError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise SourceError(f"{path} is damaged or truncated ({error}); copy it again from its source") from None


def _to_bgr(image: Image.Image, source_format: str | None, path: Path) -> NDArray[np.uint8]:
    deep = image.mode.startswith("I;16") or (image.mode == "I" and source_format in ("PNG", "PPM"))
    if deep:  # Pillow would clip to 255; the high byte is also what it keeps of 16-bit colour
        high_bytes: NDArray[np.uint8] = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.stack([high_bytes] * 3, axis=-1)
    if image.mode in ("I", "F"):
        kind = "32-bit whole numbers" if image.mode == "I" else "floats"
        raise SourceError(
            f"{path} holds {kind}, whose range of brightness is not known; scale it to 8 bits and save it again"
        )
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.frombuffer(rgb.tobytes("raw", "BGR"), np.uint8)
    return np.array(pixels.reshape(rgb.height, rgb.width, 3))


def write_image(path: str | Path, frame: NDArray[Any]) -> None:
    """Write a frame (H,W,3) uint8 BGR, or (H,W) grey, as the image format that the file's ending names.

    The file appears whole or not at all. Raises `InputError` for a frame that is none, and `OutputError` for an
    unknown ending, an unwritable folder or a full disk.
    """
    from PIL import Image

    path = Path(path)
    pixels = check_frame(frame)
    Image.init()
    name = Image.EXTENSION.get(path.suffix.lower())
    if name not in FORMATS or name not in Image.SAVE:
        raise OutputError(f"{path} must end in .jpg, .png, .webp, .bmp or .tif, but ends in {path.suffix or 'nothing'}")
    image = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            image.save(part, format=name, **({"quality": _JPEG_QUALITY} if name == "JPEG" else {}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror or error}); check the folder, its permissions and free space"
        ) from None
