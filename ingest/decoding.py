"""One image of a source: decoded as a viewer would show it, and fitted to the data set's square."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from ingest.colours import profile_of, to_srgb

# What is opened at all. PIL knows more, but some of it runs other programs (EPS) or is no picture of its own (PSD, PDF).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
READABLE_EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"]
)

MAX_FILE_BYTES = 2**32  # 4 GiB: what is larger is no photo, and would be read into memory before anybody looked at it
BITS_PER_SAMPLE, PHOTOMETRIC, COLOUR_MAP, SAMPLE_FORMAT = 258, 262, 320, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2

# The limit is decode_source_image's own, from dataset.max_image_pixels; PIL's would warn or raise at another size.
Image.MAX_IMAGE_PIXELS = None


class ImageError(Exception):
    """An image that cannot be used; the message is the short reason that the manifest records."""


def decode_source_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file into RGB pixels, upright, transparency on white; of several frames the first.

    Raises:
        ImageError: empty, truncated, damaged, in no known format, or larger than ``max_pixels``, which is
            found in the header, before any pixel is decoded.
    """
    if not data:
        raise ImageError("empty file")
    with one_line_reasons(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks on files that it can read all the same
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _to_rgb(image, max_pixels)


def require_size(num_bytes: int) -> None:
    """Refuse a file too large for memory, by its size alone."""
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(f"{num_bytes} bytes, more than an image's file may have ({MAX_FILE_BYTES})")


def to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Turn an opened PIL image of any mode into RGB as ``decode_source_image`` does, with its exceptions."""
    with one_line_reasons():
        return _to_rgb(image, max_pixels)


@contextmanager
def one_line_reasons() -> Iterator[None]:
    """Whatever a library says of an image that it cannot read becomes an ImageError; a lack of memory is not the image's fault."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of an unknown format") from None
    except Exception as error:  # on damaged bytes PIL's decoders raise nearly anything
        raise ImageError(_reason(error)) from None


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, more than dataset.max_image_pixels {max_pixels}")
    frame = image.tile[0].extents if image.format == "GIF" and image.tile else None
    profile = profile_of(image)
    _load(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "P" and max(tags.get(COLOUR_MAP, (256,))) < 256:  # written in 8 bits instead of TIFF's 16: libtiff sees it too
        image.putpalette(bytes(np.reshape(tags[COLOUR_MAP], (3, -1)).T.astype(np.uint8)))
    image = _upright(_without_empty_parts(image, frame))
    if image.mode == "F" or image.mode.startswith("I") or (image.mode == "L" and tags.get(SAMPLE_FORMAT) == (SIGNED,)):
        image = _scale_to_8_bits(image, tags)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        colours = to_srgb(image.convert("RGB"), profile)
        colours.putalpha(image.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return to_srgb(image.convert("RGB") if image.mode in ("1", "P", "YCbCr", "HSV", "RGBX") else image, profile)


def resize_and_crop(image: Image.Image, size: int, resize_filter: str, crop: str) -> Image.Image:
    """Fit an image into a square of ``size`` pixels in one resampling step.

    Args:
        resize_filter: box, bilinear, hamming, bicubic or lanczos; all antialias when reducing.
        crop: ``"center"`` keeps the proportions and the largest central square; ``"none"`` keeps all, squeezed.
    """
    width, height = image.size
    box = (0, 0, width, height)
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2  # whole pixels: half of one would blur an image that fits
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling[resize_filter.upper()], box=box)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; where EXIF itself is damaged, show the image as it is stored, as viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are already decoded: whatever fails here is the metadata
        return image


def _load(image: Image.Image) -> None:
    """Load the pixels, and bring the colour that is transparent to 8 bits as they are, which PIL forgets."""
    tile = getattr(image, "tile", None)  # only of what is read from a file
    colour, depth = image.info.get("transparency"), tile[0].args if tile else None
    if isinstance(colour, int) and depth in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    lower = _lower_halves(image) if isinstance(colour, tuple) and depth == "RGB;16B" else None
    image.load()
    if lower is not None:
        key = np.array(image.info.pop("transparency"))
        is_clear = ((np.asarray(image) == key >> 8) & (lower == key & 255)).all(axis=-1)  # (H, W)
        image.putalpha(Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8)))


def _lower_halves(image: Image.Image) -> np.ndarray:
    """The bytes (H, W, 3) of a 16-bit PNG that PIL drops: without them, other dark colours were as transparent as a black one."""
    position = image.fp.tell()
    image.fp.seek(0)
    with Image.open(io.BytesIO(image.fp.read()), formats=("PNG",)) as other:
        other.tile = [other.tile[0]._replace(args="RGB;16L")]  # read in the other order of bytes, of which PIL keeps the second
        halves = np.asarray(other)
    image.fp.seek(position)
    return halves


def _without_empty_parts(image: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """A loaded image as viewers take it: nothing around the first frame of a GIF, and no alpha in a BMP where it is 0 everywhere."""
    if frame not in (None, (0, 0, *image.size)):
        shown = Image.new("L", image.size)
        shown.paste(255, frame)
        image = image.convert("RGBA")
        image.putalpha(ImageChops.multiply(image.getchannel("A"), shown))
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def _scale_to_8_bits(image: Image.Image, tags: Mapping) -> Image.Image:
    """Map deep greyscale onto 0..255, where PIL's own conversion would clip everything above 255 to white.

    The range is the format's where that is known (16 bits: 65535; floats within 0..1 or 0..255), else the image's.

    Args:
        tags: of a TIFF.
    """
    values = np.asarray(image)
    if values.dtype == np.int32 and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED and tags.get(BITS_PER_SAMPLE) == (32,):
        values = values.view(np.uint32)  # PIL takes them for signed
    elif values.dtype == np.uint8:
        values = values.view(np.int8)  # and these for unsigned
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("has pixels that are not finite numbers")
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    low, high = values.min(), values.max()
    ranges = {"F": (1.0, 255.0), "L": (255.0,)}.get(image.mode, (4095.0 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535.0,))
    full = next((limit for limit in ranges if low >= 0 and high <= limit), None)
    if full is None:
        low = 0.0 if low == high else low  # one grey: there is no range to stretch, and it is not black unless below 0
        values, full = np.maximum(values - low, 0), (high - low) if high > low else 1.0
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # PIL inverts 8 bits and no more
        values = full - values
    grey = Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))
    if alpha is not None:
        grey.putalpha(alpha)
    return grey


def _reason(error: Exception) -> str:
    """An exception as one short line that is the same on every run (PIL prints addresses of objects)."""
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
