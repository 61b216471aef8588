"""Every kind of image against known pixels; every bad one against its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ingest.decoding import ImageError, decode_source_image, resize_and_crop

LIMIT = 10_000


def file_of(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    image = decode_source_image(data, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})])
def test_lossless_formats_keep_every_pixel(image_format, options):
    pixels = noise(7, 5, 3)
    assert (decode(file_of(Image.fromarray(pixels), image_format, **options)) == pixels).all()


def test_jpeg_is_close_to_its_source():
    pixels = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    assert np.abs(decode(file_of(Image.fromarray(pixels), "JPEG", quality=95)) - pixels).max() <= 3


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_greyscale_has_equal_channels(image_format):
    decoded = decode(file_of(Image.new("L", (8, 8), 77), image_format))
    assert (decoded == 77).all()


def test_black_and_white_uses_the_full_range():
    assert (decode(file_of(Image.new("1", (2, 2), 1), "PNG")) == 255).all()


def test_palette_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert decode(file_of(image, "PNG"))[0].tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_transparent_palette_entry_shows_white(image_format):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert decode(file_of(image, image_format, transparency=0))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize(("mode", "clear", "half"), [("RGBA", (9, 9, 9, 0), (0, 0, 0, 128)), ("LA", (9, 0), (0, 128))])
def test_alpha_is_composited_on_white(mode, clear, half):
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((1, 0), half)
    assert decode(file_of(image, "PNG"))[0].tolist() == [[255] * 3, [127] * 3]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_transparent_colour_key_shows_white(mode, colour):
    assert (decode(file_of(Image.new(mode, (2, 2), colour), "PNG", transparency=colour)) == 255).all()


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_red_is_red(image_format):  # PIL writes CMYK JPEG inverted with Adobe's marker, as Photoshop does
    data = file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), image_format)
    assert np.abs(decode(data) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(image_format):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    assert (decode(file_of(Image.fromarray(ramp), image_format))[..., 0].ravel() == np.arange(256)).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-3.0, 1e6)])
def test_float_grey_is_scaled_to_the_full_range(low, high):
    ramp = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    assert np.abs(decode(file_of(Image.fromarray(ramp), "TIFF"))[..., 0].ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("value", "kind", "image_format", "shown"),
    [
        (0.5, np.float32, "TIFF", 128),
        (100.0, np.float32, "TIFF", 100),
        (32768, np.uint16, "PNG", 128),
        (32768, np.uint16, "PPM", 128),
        (32768, np.int32, "TIFF", 128),
    ],
)
def test_deep_grey_of_a_known_range_keeps_its_brightness(value, kind, image_format, shown):
    grey = np.full((4, 4), value, dtype=kind)
    assert (decode(file_of(Image.fromarray(grey), image_format)) == shown).all()


def test_32_bit_grey_beyond_16_bits_is_stretched():
    ramp = np.linspace(-(2**30), 2**30, 256).astype(np.int32).reshape(16, 16)
    assert np.abs(decode(file_of(Image.fromarray(ramp), "TIFF"))[..., 0].ravel() - np.arange(256)).max() <= 1


def test_exif_orientation_6_is_turned_upright():
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)  # stored lying: 16 wide, its left half red
    pixels[:, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(file_of(Image.fromarray(pixels), "PNG", exif=exif))
    assert decoded.shape == (16, 8, 3)
    assert (decoded[:8] == (255, 0, 0)).all()  # turned clockwise, left becomes top
    assert (decoded[8:] == 0).all()


def test_damaged_exif_shows_the_stored_pixels():
    pixels = noise(4, 6, 3)
    data = file_of(Image.fromarray(pixels), "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12\x00")
    assert (decode(data) == pixels).all()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_animation_shows_its_first_frame(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = file_of(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == (255, 0, 0)).all()


def test_one_pixel_image():
    assert decode(file_of(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels at all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [101, 20_000, 60_000])  # beyond ours; beyond PIL's warning; beyond PIL's error
def test_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(ImageError, match=f"{side}x{side} pixels, more than dataset.max_image_pixels 10000"):
        decode_source_image(png_header(side, side), LIMIT)


@pytest.mark.filterwarnings("error")
def test_the_limit_is_the_parameter_and_not_that_of_pil():
    image = Image.new("1", (20_000, 10_000))  # PIL itself would warn from 89 million pixels, and refuse twice as many
    assert decode_source_image(file_of(image, "PNG"), 200_000_000).size == (20_000, 10_000)


WHOLE = {name: file_of(Image.fromarray(noise(40, 40, 3)), name) for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")}


@pytest.mark.parametrize("image_format", WHOLE)
def test_truncated_file_is_refused(image_format):
    with pytest.raises(ImageError):
        decode_source_image(WHOLE[image_format][: len(WHOLE[image_format]) // 2], LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^empty file$"),
        (b"hello, I am text", "^not an image, or of an unknown format$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "unknown format"),  # PIL would start a program for it
        (file_of(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)), "TIFF"), "not finite"),
    ],
)
def test_unusable_file_gives_a_short_reason(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_source_image(data, LIMIT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image_format", WHOLE)
def test_damaged_bytes_decode_or_raise_image_error_only(image_format):
    choice = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(WHOLE[image_format])
        for position in choice.integers(0, len(data), 4):
            data[position] = choice.integers(256)
        try:
            assert decode_source_image(bytes(data), LIMIT).mode == "RGB"
        except ImageError as error:
            assert " at 0x" not in str(error)  # an address would make the manifest differ between runs


def test_center_crop_keeps_the_middle_of_the_longer_side():
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    cropped = np.asarray(resize_and_crop(Image.fromarray(pixels), 10, "lanczos", "center"))
    assert (cropped == (0, 255, 0)).all()  # not even a trace of the cropped parts, in one resampling step


def test_no_crop_keeps_all_squeezed():
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, :15] = 255
    squeezed = np.asarray(resize_and_crop(Image.fromarray(pixels), 10, "box", "none"))
    assert squeezed.shape == (10, 10, 3)
    assert (squeezed[:, :5] == 255).all() and (squeezed[:, 5:] == 0).all()


def test_square_of_the_right_size_is_untouched():
    pixels = noise(8, 8, 3)
    for crop in ("center", "none"):
        assert (np.asarray(resize_and_crop(Image.fromarray(pixels), 8, "lanczos", crop)) == pixels).all()


@pytest.mark.parametrize("name", ["box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_reducing_averages_instead_of_picking_pixels(name):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    reduced = np.asarray(resize_and_crop(Image.fromarray(board).convert("RGB"), 8, name, "center")).astype(int)
    assert np.abs(reduced - 127.5).max() < 8


def test_cropping_alone_blurs_nothing():
    pixels = noise(8, 11, 3)  # an odd number of columns too many
    assert (np.asarray(resize_and_crop(Image.fromarray(pixels), 8, "lanczos", "center")) == pixels[:, 1:9]).all()


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


def tiff(values: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """An uncompressed little-endian TIFF of one strip, as TIFF 6.0 lays it out."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: height, 279: values.nbytes}
    entries[339] = sample_format
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + values.tobytes()


@pytest.mark.parametrize(
    ("values", "photometric", "sample_format", "expected"),
    [
        (np.array([[0, 65535, 257]], np.uint16), 1, 1, [0, 255, 1]),
        (np.array([[0, 65535, 257]], np.uint16), 0, 1, [255, 0, 254]),  # white is zero
        (np.array([[0, 65535, 257]], np.uint32), 1, 1, [0, 255, 1]),
        (np.array([[0, 2**32 - 1, 2**31]], np.uint32), 1, 1, [0, 255, 128]),
        (np.array([[-1, 1, 0]], np.int32), 1, 2, [0, 255, 128]),
        (np.array([[0.0, 1.0, 0.2]], np.float32), 1, 3, [0, 255, 51]),
        (np.array([[700.0, 700.0]], np.float32), 1, 3, [255, 255]),
        (np.array([[-3.0, -3.0]], np.float32), 1, 3, [0, 0]),
        (np.array([[0.5, 0.5]], np.float32), 1, 3, [128, 128]),
    ],
)
def test_deep_tiffs(values, photometric, sample_format, expected):
    assert decode(tiff(values, photometric, sample_format))[0, :, 0].tolist() == expected


def test_transparent_colour_of_16_bits():
    grey = np.array([[1000, 1001]], np.uint16)
    assert decode(png_with_transparency(grey, struct.pack(">H", 1000), 0))[0].tolist() == [[255] * 3, [4] * 3]
    colours = np.array([[[0x1234, 0, 0], [0x5678, 0, 0]]], np.uint16)
    assert decode(png_with_transparency(colours, struct.pack(">HHH", 0x1234, 0, 0), 2))[0].tolist() == [[255] * 3, [0x56, 0, 0]]


def png_with_transparency(values: np.ndarray, transparent: bytes, colour_type: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*entry) for entry in chunks)
