"""The colours that a file means: profiles and a PNG's own chunks, against arithmetic."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ingest.decoding import ImageError, decode_source_image
from tests.ingest.test_decoding import LIMIT, decode, file_of, noise, png


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 2, as ICC.1:2001 lays it out."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"wtpt": xyz(0.9642, 1.0, 0.8249), **tags}
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    header = struct.pack(">I4s4s4s4s4s", size, bytes(4), bytes.fromhex("02400000"), b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


ADOBE_PRIMARIES = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])  # columns: r, g, b
SRGB_PRIMARIES = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE_GAMMA = 563 / 256
ADOBE = icc_profile(
    b"RGB ",
    {b"%cXYZ" % c: xyz(*ADOBE_PRIMARIES[:, n]) for n, c in enumerate(b"rgb")} | {b"%cTRC" % c: gamma(ADOBE_GAMMA) for c in b"rgb"},
)


def srgb_of(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def adobe_to_srgb(pixels: np.ndarray) -> np.ndarray:
    return srgb_of((pixels / 255.0) ** ADOBE_GAMMA @ ADOBE_PRIMARIES.T @ np.linalg.inv(SRGB_PRIMARIES).T)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_colours_are_those_the_profile_means(image_format):
    pixels = np.full((8, 8, 3), (180, 120, 90), np.uint8)
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = decode(file_of(Image.fromarray(pixels), image_format, icc_profile=ADOBE, **options))
    expected = adobe_to_srgb(pixels)
    assert np.abs(expected - pixels).max() > 10  # a file that ignores it shows something else
    assert np.abs(found - expected).max() <= (4 if image_format == "JPEG" else 1.5)


def test_a_profile_spares_alpha_and_palettes_have_it_too():
    pixels = np.full((4, 4, 3), (180, 120, 90), np.uint8)
    transparent = Image.fromarray(pixels)
    transparent.putalpha(Image.fromarray(np.array([[255, 0, 255, 0]] * 4, np.uint8)))
    found = decode(file_of(transparent, "PNG", icc_profile=ADOBE))
    assert (found[:, 1] == 255).all() and np.abs(found[:, 0] - adobe_to_srgb(pixels)[:, 0]).max() <= 1.5
    palette = Image.fromarray(pixels).quantize(4)
    assert np.abs(decode(file_of(palette, "PNG", icc_profile=ADOBE)) - adobe_to_srgb(pixels)).max() <= 1.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_profiles_count(dtype):
    linear = icc_profile(b"GRAY", {b"kTRC": gamma(1.0)})
    grey = Image.fromarray(np.full((4, 4), 64 * (257 if dtype == np.uint16 else 1), dtype))
    assert np.abs(decode(file_of(grey, "PNG", icc_profile=linear)) - srgb_of(np.array(64 / 255))).max() <= 1.5


def test_profiles_of_srgb_broken_ones_and_those_of_other_modes_change_nothing():
    pixels = noise(6, 5, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", ADOBE[:200], icc_profile(b"GRAY", {b"kTRC": gamma(1.0)})):
        assert (decode(file_of(Image.fromarray(pixels), "PNG", icc_profile=profile)) == pixels).all()


@pytest.mark.parametrize("name", [b"sRGB\0", b"not sRGB\0"])
def test_a_profile_is_believed_before_its_name(name):
    pixels = np.full((4, 4, 3), (180, 120, 90), np.uint8)
    named = ADOBE.replace(struct.pack(">I", 5) + b"test\0" + bytes(len(name) - 5), struct.pack(">I", len(name)) + name)
    assert named != ADOBE
    assert np.abs(decode(file_of(Image.fromarray(pixels), "PNG", icc_profile=named)) - adobe_to_srgb(pixels)).max() <= 1.5


@pytest.mark.parametrize("options", [{"mode": "LA"}, {"mode": "L", "transparency": 9}, {"mode": "L"}])
def test_a_grey_profile_counts_beside_transparency(options):
    linear = icc_profile(b"GRAY", {b"kTRC": gamma(1.0)})
    grey = Image.new("L", (2, 1), 64).convert(options.pop("mode"))
    assert np.abs(decode(file_of(grey, "PNG", icc_profile=linear, **options)) - srgb_of(np.array(64 / 255))).max() <= 1.5
    deep = png(1, 1, 16, 4, b"\0\x40\x40\xff\xff", {b"iCCP": b"x\0\0" + zlib.compress(linear)})
    assert np.abs(decode(deep) - srgb_of(np.array(64 / 255))).max() <= 1.5


ADOBE_XY = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
SRGB_XY = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
COLOUR = (180, 120, 90)


def gamma_chunk(exponent: float) -> dict[bytes, bytes]:
    return {b"gAMA": struct.pack(">I", round(100_000 * exponent))}


def p3_to_srgb(colour: tuple[int, ...]) -> np.ndarray:
    """By the matrix that CSS Color 4 has for display-p3 to srgb, both linear."""
    linear = np.array([((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour])
    return srgb_of(np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]) @ linear)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (gamma_chunk(1.0), srgb_of(np.array(COLOUR) / 255)),
        (gamma_chunk(1 / ADOBE_GAMMA) | {b"cHRM": ADOBE_XY}, adobe_to_srgb(np.array(COLOUR))),
        (gamma_chunk(0.45455), COLOUR),
        (gamma_chunk(0.45455) | {b"cHRM": SRGB_XY}, COLOUR),
        (gamma_chunk(1.0) | {b"sRGB": b"\0"}, COLOUR),
        (gamma_chunk(0), COLOUR),
        (gamma_chunk(1.0) | {b"cHRM": bytes(32)}, COLOUR),  # no primaries
        (gamma_chunk(1.0) | {b"cICP": bytes([1, 13, 0, 1])}, COLOUR),
        ({b"cICP": bytes([12, 13, 0, 1])}, p3_to_srgb(COLOUR)),
    ],
)
def test_a_pngs_own_chunks_say_what_its_colours_are(chunks, expected):
    assert np.abs(decode(png(1, 1, 8, 2, b"\0" + bytes(COLOUR), chunks)) - expected).max() <= 1.5


@pytest.mark.parametrize("numbers", [(9, 16, 0, 1), (1, 13, 1, 1), (1, 13, 0, 0), (77, 13, 0, 1)])
def test_colours_that_srgb_cannot_show_are_refused(numbers):
    with pytest.raises(ImageError, match=r"its colours \(cICP \[\d+, \d+, \d, \d\]\) cannot be shown as sRGB; save it as sRGB"):
        decode_source_image(png(1, 1, 8, 2, bytes(4), {b"cICP": bytes(numbers)}), LIMIT)
