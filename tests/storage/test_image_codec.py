"""The codec of shards: what comes back of an image, the same bytes each time, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from storage.image_codec import decode_image, encode_image


def smooth_image() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("image_format", "tolerance"), [("png", 0), ("webp", 0), ("jpeg", 12)])
def test_encoding_keeps_the_pixels_and_is_reproducible(image_format, tolerance):
    pixels = smooth_image()
    data = encode_image(pixels, image_format)
    for decoded in (decode_image(data), np.asarray(Image.open(io.BytesIO(data)))):
        assert decoded.dtype == np.uint8 and np.abs(decoded.astype(int) - pixels).max() <= tolerance
    assert data == encode_image(pixels.copy(), image_format)


def test_encoding_refuses_what_is_not_an_rgb_image():
    with pytest.raises(ValueError, match="uint8"):
        encode_image(np.zeros((4, 4, 3), dtype=np.float32), "png")


@pytest.mark.parametrize("data", [b"", b"no image", encode_image(smooth_image(), "png")[:40]])
def test_decoding_refuses_damaged_data(data):
    with pytest.raises(ValueError):
        decode_image(data)
