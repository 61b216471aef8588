"""Images of the page: grids and strips as they are, what is too large compressed, what is none refused; and ranges of single images."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from errors import PipelineError
from reporting import images
from reporting.images import embed_grid, embed_strip, range_rows


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def write_picture(path, pixels) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def grid(tmp_path):
    """Two rows of three images of 4 pixels, 1 pixel apart, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    write_picture(tmp_path / "dae-0/samples.png", pixels)
    return tmp_path / "dae-0/samples.png", pixels


def test_a_huge_grid_is_compressed_and_a_small_one_is_embedded_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "dae-0" / "real.png"
    write_picture(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    small = embed_grid(path)
    assert small["uri"].startswith("data:image/png;base64,")
    assert (small["width"], small["height"], small["is_compressed"]) == (64, 64, False)
    monkeypatch.setattr(images, "MAX_PNG_BYTES", 1000)
    large = embed_grid(path)
    assert large["uri"].startswith("data:image/webp;base64,")
    assert large["is_compressed"]
    assert len(large["uri"]) < len(small["uri"])


@pytest.mark.parametrize("size", [(100_000, 100_000), (4, 4)])
def test_a_grid_of_a_size_that_none_has_or_without_its_pixels_is_refused(tmp_path, size):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    path = tmp_path / "dae-0/real.png"
    path.parent.mkdir()
    framed = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    with pytest.raises(PipelineError, match=r"real\.png: not a readable PNG .*; run dvc repro --force evaluate@dae-0$"):
        embed_grid(path)


@pytest.mark.parametrize(("number", "corners"), [(2, [(0, 0), (0, 5)]), (8, [(0, 0), (0, 5), (0, 10), (5, 0), (5, 5), (5, 10)])])
def test_a_strip_holds_the_first_images_row_by_row(grid, monkeypatch, number, corners):
    path, pixels = grid
    monkeypatch.setattr(images, "NUM_IN_STRIP", number)
    strip = embed_strip(path, {"size": 4, "gap": 1})
    assert (strip["num_images"], strip["width"], strip["height"]) == (len(corners), 4 * len(corners), 4)
    for position, (top, left) in enumerate(corners):
        assert (picture(strip["uri"])[:, 4 * position : 4 * position + 4] == pixels[top : top + 4, left : left + 4]).all()


def test_large_images_of_a_strip_are_made_small(grid, monkeypatch):
    monkeypatch.setattr(images, "STRIP_PIXELS", 2)
    strip = embed_strip(grid[0], {"size": 4, "gap": 1})
    assert picture(strip["uri"]).shape == (2, 2 * 6, 3)


def test_a_grid_that_holds_no_such_image_is_refused(grid):
    with pytest.raises(
        PipelineError, match=r"samples\.png: 14 x 9 pixels are no grid of images of 32; run dvc repro --force"
    ):
        embed_strip(grid[0], {"size": 32, "gap": 2})


@pytest.mark.parametrize(("width", "zoom"), [(20, 8), (142, 8), (220, 5), (270, 4), (2062, 4)])
def test_an_enlarged_grid_shows_each_pixel_four_to_eight_times(tmp_path, width, zoom):
    write_picture(tmp_path / "dae-0/real.png", np.zeros((4, width, 3), dtype=np.uint8))
    assert embed_grid(tmp_path / "dae-0/real.png")["zoom"] == zoom


def test_ranges_share_one_axis():
    low, high = range_rows([("a", "red", list(range(101))), ("b", "blue", list(range(100, 201)))], "{:.0f} dB")
    assert (low["median"], low["range"], high["median"]) == ("50 dB", "5 dB to 95 dB", "150 dB")
    places = [float(place) for place in (*low["places"], *high["places"])]
    assert places == sorted(places) and places[0] == 2 and places[-1] == 98
    assert float(low["places"][2]) == pytest.approx(2 + 96 * 45 / 190, abs=0.01)
    assert [row["places"] for row in range_rows([("one", "red", [7.0])], "{}")] == [["2.00"] * 5]
