"""The colours that a file means, in sRGB: by its colour profile, or by the chunks that a PNG may have instead of one."""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green and blue, as in a cHRM chunk
SRGB_GAMMA = 0.45455  # what a gAMA chunk says of sRGB
TOLERANCE = 0.005  # of either, for the same colours written with other digits
MAX_DIFFERENCE = 4  # levels; profiles of sRGB itself are rounded in many ways, and converting by them would only blur
# Code points of a cICP chunk (ITU-T H.273). Images with a video's curve are shown by sRGB's.
CICP_PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
CICP_GAMMAS = {**dict.fromkeys((1, 6, 13, 14, 15)), 4: 2.2, 5: 2.8, 8: 1.0}  # None: sRGB's curve
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])  # the white of every profile


def profile_of(image: Image.Image) -> bytes | None:
    """The profile of an opened image that is not loaded yet; of a PNG's chunks the first that counts, made into one.

    Raises:
        ValueError: for colours of HDR, which sRGB cannot show, and unknown ones.
    """
    info = image.info
    if cicp := _cicp(image):
        primaries, transfer, matrix, is_full_range = cicp
        if primaries not in CICP_PRIMARIES or transfer not in CICP_GAMMAS or matrix != 0 or is_full_range != 1:
            raise ValueError(f"its colours (cICP {list(cicp)}) cannot be shown as sRGB; save it as sRGB")
        is_srgb = CICP_PRIMARIES[primaries] == SRGB_PRIMARIES and CICP_GAMMAS[transfer] is None
        return None if is_srgb else make_profile(CICP_PRIMARIES[primaries], CICP_GAMMAS[transfer])
    if info.get("icc_profile") or image.format != "PNG" or "srgb" in info or not info.keys() & {"gamma", "chromaticity"}:
        return info.get("icc_profile")
    primaries, exponent = info.get("chromaticity", SRGB_PRIMARIES), info.get("gamma", SRGB_GAMMA)
    is_close = np.allclose([*primaries, exponent], [*SRGB_PRIMARIES, SRGB_GAMMA], rtol=0, atol=TOLERANCE)
    return None if is_close or exponent == 0 else make_profile(primaries, 1 / exponent if "gamma" in info else None)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB as the profile means it; one that is damaged, or made for other modes, is ignored, as by viewers."""
    if not profile:
        return image.convert("RGB")
    if image.mode == "RGB" and profile[16:20] == b"GRAY":
        image = _as_grey(image)
    elif image.mode == "L" and profile[16:20] == b"RGB ":
        image = image.convert("RGB")
    transform = _transform(profile, image.mode)
    return image.convert("RGB") if transform is None else transform.apply(image)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where there is nothing to do, or nothing that can be done."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent, flags = ImageCms.getDefaultIntent(opened), ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(opened, SRGB, mode, "RGB", intent, flags)
        # The name alone is not enough: there are profiles called "not sRGB" and "linear sRGB".
        is_named_srgb = "srgb" in ImageCms.getProfileDescription(opened).lower()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if is_named_srgb and _hardly_changes(transform, mode) else transform


def _hardly_changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 16)] * 3), axis=-1).astype(np.uint8).reshape(64, 64, 3)
    probe = Image.fromarray(grid).convert(mode)
    before, after = (np.asarray(image).astype(int) for image in (probe.convert("RGB"), transform.apply(probe)))
    return int(np.abs(after - before).max()) <= MAX_DIFFERENCE


def _as_grey(image: Image.Image) -> Image.Image:
    """Greyscale that PIL holds as RGB, for the sake of its alpha; RGB in colours as it is."""
    grey = image.getchannel("R")
    return grey if Image.merge("RGB", [grey] * 3).tobytes() == image.tobytes() else image


def _cicp(image: Image.Image) -> tuple[int, ...] | None:
    """The four numbers of a PNG's cICP chunk, which PIL does not read."""
    file = image.fp if image.format == "PNG" else None
    if file is None:
        return None
    position, found = file.tell(), None
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        size = int.from_bytes(head[:4])
        if head[4:] == b"cICP" and size == 4:
            found = tuple(file.read(4))
            break
        file.seek(size + 4, io.SEEK_CUR)
    file.seek(position)
    return found


def make_profile(primaries: tuple[float, ...], gamma: float | None) -> bytes | None:
    """An ICC profile of a screen; None for primaries that are none.

    Args:
        primaries: x and y of white, red, green and blue.
        gamma: exponent of all three curves; None: sRGB's.
    """
    places = np.reshape(primaries, (4, 2))
    if (places[:, 1] <= 0).any():
        return None
    white, *colours = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in places]
    try:
        matrix = np.stack(colours, axis=1) * np.linalg.solve(np.stack(colours, axis=1), white)  # columns: r, g, b
    except np.linalg.LinAlgError:
        return None
    matrix = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD @ matrix
    kind, numbers = (0, (gamma,)) if gamma is not None else (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    if max(np.abs(matrix).max(), *numbers) >= 2**15:  # beyond what the format holds
        return None
    curve = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + _fixed(*numbers)
    tags = {b"wtpt": b"XYZ " + bytes(4) + _fixed(*D50)}
    for name, column in zip(b"rgb", matrix.T, strict=True):
        tags |= {b"%cXYZ" % name: b"XYZ " + bytes(4) + _fixed(*column), b"%cTRC" % name: curve}
    return _lay_out(tags)


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _lay_out(tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 4, as ICC.1:2010 has it."""
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I", offset + len(body)) + bytes(4) + bytes.fromhex("04200000") + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + _fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
