"""One image of a source: decoded as a viewer would show it, and fitted to the data set's square."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What is opened at all. PIL knows more, but some of it runs other programs (EPS) or is no picture of its own (PSD, PDF).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
EXTENSIONS = frozenset(["jpg", "jpeg", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"])

# The limit is decode_image's own, from dataset.max_image_pixels; PIL's would warn or raise at another size.
Image.MAX_IMAGE_PIXELS = None


class ImageError(Exception):
    """An image that cannot be used; the message is the short reason that the manifest records."""


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file into RGB pixels, upright, transparency on white; of several frames the first.

    Raises:
        ImageError: empty, truncated, damaged, in no known format, or larger than ``max_pixels``, which is
            found in the header, before any pixel is decoded.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks on files that it can read all the same
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return to_rgb(image, max_pixels)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of an unknown format") from None
    except Exception as error:  # on damaged bytes PIL's decoders raise nearly anything
        raise ImageError(_reason(error)) from None


def to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Turn an opened PIL image of any mode into RGB as ``decode_image`` does, with its exceptions."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, more than dataset.max_image_pixels {max_pixels}")
    image.load()
    image = _upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _scale_to_8_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Map deep greyscale onto 0..255, where PIL's own conversion would clip everything above 255 to white.

    The range is the format's where that is known (16 bits: 65535; floats within 0..1 or 0..255), else the image's.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("has pixels that are not finite numbers")
    low, high = values.min(), values.max()
    ranges = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    full = next((limit for limit in ranges if low >= 0 and high <= limit), None)
    if full is None:
        values, full = values - low, (high - low) or 1.0
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))


def _reason(error: Exception) -> str:
    """An exception as one short line that is the same on every run (PIL prints addresses of objects)."""
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
