"""Every kind of image against known pixels; every bad one against its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

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


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """A PNG of these rows, filter bytes included, with more chunks before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    entries = ((b"IHDR", header), *(chunks or {}).items(), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*entry) for entry in entries)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [101, 20_000, 60_000])  # beyond ours; beyond PIL's warning; beyond PIL's error
def test_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(ImageError, match=f"{side}x{side} pixels, more than dataset.max_image_pixels 10000"):
        decode_source_image(png(side, side, 8, 2, b""), LIMIT)


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
        (np.array([[-128, 127, 0]], np.int8), 1, 2, [0, 255, 128]),
        (np.array([[0, 127, 1]], np.int8), 1, 2, [0, 127, 1]),
        (np.array([[0.0, 1.0, 0.2]], np.float32), 1, 3, [0, 255, 51]),
        (np.array([[700.0, 700.0]], np.float32), 1, 3, [255, 255]),
        (np.array([[-3.0, -3.0]], np.float32), 1, 3, [0, 0]),
        (np.array([[0.5, 0.5]], np.float32), 1, 3, [128, 128]),
    ],
)
def test_deep_tiffs(values, photometric, sample_format, expected):
    assert decode(tiff(values, photometric, sample_format))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("white", [255, 65535])  # the first by programs that took the map's entries for bytes
def test_colour_maps_of_8_and_16_bits(white):
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 255, 255, 0])
    data = bytearray(file_of(image, "TIFF"))
    at = data.index(struct.pack("<HHI", 320, 3, 768))
    place = struct.unpack_from("<I", data, at + 8)[0]
    colours = np.zeros((3, 256), np.uint16)
    colours[:2, 1] = white, white // 2
    data[place : place + 1536] = colours.tobytes()
    assert decode(bytes(data))[0].tolist() == [[255, 127, 0]]


def test_12_bit_grey_has_its_own_white():
    data = bytearray(tiff(np.array([[0xFF, 0xF8, 0x00]], np.uint8), 1, 1))  # 4095 and 2048
    for tag, value in ((256, 2), (258, 12)):
        at = data.index(struct.pack("<HH", tag, 4))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    assert decode(bytes(data))[0, :, 0].tolist() == [255, 128]


def test_transparent_colours_of_any_depth():
    deep_grey, deep_rgb = struct.pack(">HH", 1000, 1001), struct.pack(">6H", 0x1234, 0, 0, 0x5678, 0, 0)
    assert decode(png(2, 1, 16, 0, b"\0" + deep_grey, {b"tRNS": deep_grey[:2]}))[0].tolist() == [[255] * 3, [4] * 3]
    assert decode(png(2, 1, 16, 2, b"\0" + deep_rgb, {b"tRNS": deep_rgb[:6]}))[0].tolist() == [[255] * 3, [0x56, 0, 0]]
    near = struct.pack(">6H", 0, 0, 0, 0x10, 0x20, 0x80)  # the same in the upper halves
    assert decode(png(2, 1, 16, 2, b"\0" + near, {b"tRNS": bytes(6)}))[0].tolist() == [[255] * 3, [0] * 3]
    assert decode(png(2, 1, 4, 0, b"\0\x5a", {b"tRNS": b"\0\x05"}))[0].tolist() == [[255] * 3, [170] * 3]
    assert decode(png(4, 1, 2, 0, b"\0\x1b", {b"tRNS": b"\0\x01"}))[0, :, 0].tolist() == [0, 255, 170, 255]
    assert decode(png(8, 1, 1, 0, b"\0\xf0", {b"tRNS": b"\0\x00"}))[0, :, 0].tolist() == [255] * 8


def test_grey_with_premultiplied_alpha():
    data = bytearray(tiff(np.array([[0x8040]], np.uint16), 1, 1))  # grey 64 of at most 128
    for tag, count, value in ((258, 2, 0x00080008), (277, 1, 2), (339, 1, 0)):  # two samples of 8 bits; the last entry becomes ExtraSamples
        at = data.index(struct.pack("<HH", tag, 4))
        data[at : at + 12] = struct.pack("<HHII", 338 if tag == 339 else tag, 3, count, 1 if tag == 339 else value)
    assert decode(bytes(data))[0].tolist() == [[64 + 127] * 3]


def gif(width: int, frame: tuple[int, int], index: int) -> bytes:
    """One row: red, green, blue and black are its colours, and pixels from ``frame[0]`` to ``frame[1]`` have one of them."""
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    codes = [code for _ in range(*frame) for code in (4, index)] + [5]  # of 3 bits, each after a code that clears the table
    packed = sum(code << 3 * number for number, code in enumerate(codes)).to_bytes(-(-3 * len(codes) // 8), "little")
    head = b"GIF89a" + struct.pack("<HHBBB", width, 1, 0x81, 0, 0) + palette
    return head + b"," + struct.pack("<HHHHB", frame[0], 0, frame[1] - frame[0], 1, 0) + bytes([2, len(packed)]) + packed + b"\0;"


def test_nothing_is_around_a_gif_frame_smaller_than_its_image():
    assert decode(gif(4, (1, 3), 2))[0].tolist() == [[255] * 3, [0, 0, 255], [0, 0, 255], [255] * 3]
    assert decode(gif(2, (0, 2), 1))[0].tolist() == [[0, 255, 0]] * 2


@pytest.mark.parametrize(("alpha", "shown"), [((0, 0), [[1, 2, 3]] * 2), ((0, 255), [[255] * 3, [1, 2, 3]])])
def test_a_bmp_whose_alpha_is_0_everywhere_has_none(alpha, shown):
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = b"".join(bytes([3, 2, 1, value]) for value in alpha)
    data = b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + header.ljust(108, b"\0") + pixels
    assert decode(data)[0].tolist() == shown
