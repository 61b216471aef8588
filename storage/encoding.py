"""How images are stored inside shards; apart from storage/images.py, so that a change there reruns the shards stage alone."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

ENCODERS = {
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "lossless": True, "quality": 80, "method": 4},  # quality: effort, when lossless
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def encode_image(pixels: np.ndarray, image_format: str) -> bytes:
    """Encode uint8 pixels (H, W, 3) as png, webp (both lossless) or jpeg; the same pixels give the same bytes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **ENCODERS[image_format])
    return buffer.getvalue()
