"""Encodes images for shards, as PNG, WebP or JPEG, and decodes them again.

The images that users bring are decoded by ingest/decoding.py. That is another file because every stage that opens a shard depends on
this one: when the reading of users' images changes, the stage ``shards`` alone runs again.
"""

from __future__ import annotations

import io

import cv2
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


def decode_image(data: bytes) -> np.ndarray:
    """Decode what ``encode_image`` made to uint8 pixels (H, W, 3).

    OpenCV rather than PIL: it is faster on small images, notices more damage, and lets other threads run meanwhile.

    Raises:
        ValueError: when the data are damaged.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if pixels is None:
        raise ValueError("damaged or not an image")
    return pixels
