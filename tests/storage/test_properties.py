"""What users bring, in forms that nobody thought of: read as what it is, or refused in one line; never something else."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from errors import PipelineError
from ingest.decoding import ImageError, decode_source_image
from ingest.sources import open_source
from storage.image_codec import decode_image, encode_image
from storage.shards import EXTENSIONS, KEY_PATTERN, ShardDataset, write_manifest, write_shard
from tests.ingest.test_decoding import png
from tests.ingest.test_tars import write_tar

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
}
STARTS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0", b"RIFF\x30\0\0\0WEBPVP8 ", b"GIF89a", b"P6 ")
FORMATS = sorted((name, mode) for name, modes in MODES.items() for mode in modes)
PIXELS = st.integers(1, 9).flatmap(lambda side: st.binary(min_size=side * side * 4, max_size=side * side * 4))


def image_of(data: bytes, mode: str) -> Image.Image:
    side = int((len(data) // 4) ** 0.5)
    values = np.frombuffer(data, np.uint8).reshape(side, side, 4)
    if mode == "I;16":
        return Image.fromarray(values[..., :2].copy().view(np.uint16)[..., 0])
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32))
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(values[..., :bands].squeeze(-1) if bands == 1 else values[..., :bands], None if bands > 1 else "L").convert(mode)


def file_of(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"lossless": True, "exact": True} if image_format == "WEBP" else {}))
    return buffer.getvalue()


def read_or_refuse(data: bytes) -> Image.Image | None:
    try:
        image = decode_source_image(data, 10_000)
    except ImageError as error:
        assert str(error) and "\n" not in str(error)
        return None
    assert image.mode == "RGB" and image.width * image.height <= 10_000
    return image


@given(PIXELS, st.sampled_from(FORMATS))
def test_images_are_what_pil_says_of_their_8_bit_modes(data, kind):
    image_format, mode = kind
    original = image_of(data, mode)
    found = read_or_refuse(file_of(original, image_format))
    assert found is not None and found.size == original.size
    if mode in ("1", "L", "P", "RGB"):
        assert (np.asarray(found) == np.asarray(original.convert("RGB"))).all()


@given(PIXELS, st.sampled_from(FORMATS), st.floats(0, 1), st.binary(max_size=6), st.integers(0, 30))
def test_damaged_images_are_read_or_refused(data, kind, place, inserted, num_deleted):
    content = file_of(image_of(data, kind[1]), kind[0])
    start = int(place * len(content))
    read_or_refuse(content[:start] + inserted + content[start + num_deleted :])


@given(st.binary(max_size=80), st.sampled_from(STARTS))
def test_any_bytes_are_read_or_refused(content, start):
    read_or_refuse(start + content)


COLOUR_CHUNKS = {
    b"cICP": st.binary(min_size=4, max_size=4)
    | st.tuples(st.sampled_from([1, 9, 12]), st.sampled_from([1, 8, 13, 16]), st.just(0), st.just(1)).map(bytes),
    b"gAMA": st.integers(0, 2**32 - 1).map(lambda value: value.to_bytes(4)),
    b"cHRM": st.lists(st.integers(0, 100_000) | st.integers(0, 2**32 - 1), min_size=8, max_size=8).map(
        lambda values: struct.pack(">8I", *values)
    ),
    b"iCCP": st.binary(max_size=200).map(lambda data: b"x\0\0" + zlib.compress(data)),
    b"sRGB": st.binary(max_size=1),
}


@given(st.fixed_dictionaries({}, optional=COLOUR_CHUNKS), st.sampled_from([0, 2, 4, 6]))
def test_any_colours_of_a_png_are_read_or_refused(chunks, colour_type):
    read_or_refuse(png(1, 1, 8, colour_type, bytes([0, 180, 120, 90, 255])[: 1 + {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]], chunks))


NAMES = st.one_of(
    st.text(alphabet="ab./\\-_ é\u0000:\n", min_size=1, max_size=8),
    st.sampled_from(["a.png", "a.cls", "a.json", "b/a.png", "../x.png", "/abs.png", "a.PNG", ".png", "train/a.png", "a.seg.png"]),
)
BLACK = encode_image(np.zeros((4, 4, 3), np.uint8), "png")
CONTENTS = st.one_of(
    st.sampled_from([BLACK, b"", b"0", b"-1", b"cat", b"{}", b'{"label": 1}', b"\xff", b"[1", b"9" * 5000, b"[" * 10_000, b"a\nb", b"\0"]),
    st.integers(-(10**30), 10**30).map(lambda number: str(number).encode()),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
    ).map(lambda value: json.dumps({"label": value}).encode()),
)
# Place and bytes that are written there; most fall into a header, where they are a name, a size, a type or a checksum.
CHANGES = st.lists(st.tuples(st.integers(0, 2600), st.binary(min_size=1, max_size=12)), max_size=2)


@given(st.dictionaries(NAMES, CONTENTS, max_size=5), st.sampled_from(["random", "folders"]), st.integers(0, 3000), CHANGES)
def test_tars_are_read_or_refused(tmp_path_factory, members, split, num_cut, changes):
    folder = tmp_path_factory.mktemp("tars")
    try:
        path = write_tar(folder / "train-0.tar", members)
    except ValueError:  # a name that no tar can hold
        return
    data = bytearray(path.read_bytes()[: -num_cut or None])
    for place, change in changes:
        data[place : place + len(change)] = change
        block = place // 512 * 512
        if len(change) % 2 and data[block + 257 : block + 262] == b"ustar":  # with a checksum that is right again
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
    path.write_bytes(data)
    try:
        source = open_source(folder, split)
    except PipelineError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return
    items = [item for listed in source.splits.values() for item in listed]
    assert len({item.key for item in items}) == len(items) > 0
    for item in items:
        data, label = source.reader.read(item)
        assert KEY_PATTERN.fullmatch(item.key) and (label is None or 0 <= label < len(source.classes))
        assert data in members.values() or changes


@given(st.integers(0, 10_239), st.integers(1, 255), st.sampled_from(sorted(EXTENSIONS)))
def test_a_shard_with_any_byte_changed_is_refused(tmp_path_factory, position, change, image_format):
    folder = tmp_path_factory.mktemp("shards")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    entry = write_shard(folder / "train-000000.tar", ((f"image-{n}", image, n) for n, image in enumerate(pixels)), image_format)
    write_manifest(folder, {"train": [entry]}, 8, image_format, ["a", "b", "c"])
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= change
    path.write_bytes(bytes(data))
    with pytest.raises(PipelineError, match=r"^[^\n]*train-000000\.tar: is damaged [^\n]*$"):
        ShardDataset(folder, "train")


@given(st.binary(max_size=60))
def test_stored_images_are_read_or_refused(data):
    try:
        assert decode_image(data).dtype == np.uint8
    except ValueError as error:
        assert "\n" not in str(error)
