"""The images of the page: grids and strips of them as data URIs, and what stands below them.

Of the first seed all grids are shown, as they are; of further seeds the samples, compressed: a study of nine arms and eight seeds has some
three hundred grids, and the page must remain one file that can be mailed.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from errors import PipelineError
from reporting.tables import arm_color
from storage.examples import read_examples

MAX_PNG_BYTES = 1_000_000  # a larger grid is embedded as WebP
QUALITY = 90  # of WebP
NUM_IN_STRIP = 8
STRIP_PIXELS = 96  # a side of an image in a strip, at most: twice as many as it is shown with on a wide screen
ZOOM = (4, 8)  # an enlarged grid shows a pixel that many times as large, so that it is about ...
ZOOMED_PIXELS = 1100  # ... so wide
GRIDS = {
    "real": "Real validation images",
    "reconstruction_stage1": "After stage 1",
    "reconstruction_stage2": "After stage 2",
    "samples": "Samples",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def embed_grid(path: Path, is_compressed: bool = False) -> dict:
    """Read a grid of images for the page.

    Args:
        is_compressed: whether it may be lossy though it is small.

    Returns:
        ``{"uri": data URI, "width", "height", "zoom": how often as large it is when enlarged, "is_compressed": whether it is lossy}``.

    Raises:
        PipelineError: naming the file, when it is missing or no image.
    """
    data, picture = _read_png(path)
    is_compressed = is_compressed or len(data) > MAX_PNG_BYTES
    zoom = min(max(round(ZOOMED_PIXELS / picture.width), ZOOM[0]), ZOOM[1])
    uri = _lossy(picture) if is_compressed else _data_uri(data, "png")
    return {"uri": uri, "width": picture.width, "height": picture.height, "zoom": zoom, "is_compressed": is_compressed}


def embed_strip(path: Path, tile: dict) -> dict:
    """The first images of a grid, side by side and small, without what is between them.

    Args:
        tile: how the grid is laid out, ``storage.examples.TileRecord``.

    Returns:
        ``{"uri", "width", "height", "num_images"}``.

    Raises:
        PipelineError: naming the file, when it is missing, no image, or no grid of such tiles.
    """
    _, picture = _read_png(path)
    size, step = tile["size"], tile["size"] + tile["gap"]
    num_columns, num_rows = ((side + tile["gap"]) // step for side in picture.size)
    if min(num_columns, num_rows) < 1:
        raise PipelineError(f"{path}: {picture.width} x {picture.height} pixels are no grid of images of {size}; {_remake(path)}")
    corners = [(column * step, row * step) for row in range(num_rows) for column in range(num_columns)][:NUM_IN_STRIP]
    side = min(size, STRIP_PIXELS)
    strip = Image.new("RGB", (side * len(corners), side))
    for position, (left, top) in enumerate(corners):
        image = picture.crop((left, top, left + size, top + size))
        strip.paste(image if side == size else image.resize((side, side), Image.Resampling.LANCZOS), (position * side, 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG", optimize=True)
    uri = _data_uri(buffer.getvalue(), "png") if buffer.tell() <= MAX_PNG_BYTES else _lossy(strip)
    return {"uri": uri, "width": strip.width, "height": strip.height, "num_images": len(corners)}


def grid_rows(summary: dict, grids: Path, seed: int, examples: dict[str, dict]) -> list[dict]:
    """What the page shows of one seed, arm by arm; of the first seed also single images.

    Args:
        examples: ``<arm>-<seed>`` -> what ``storage.examples.read_examples`` read.
    """
    is_first = seed == summary["seeds"][0]
    rows = []
    for number, arm in enumerate(summary["arm_names"]):
        folder = grids / f"{arm}-{seed}"
        kinds = GRIDS if is_first else {"samples": GRIDS["samples"]}
        images = [{"label": label, "below": [], **embed_grid(folder / f"{kind}.png", not is_first)} for kind, label in kinds.items()]
        images += _single_images(folder, examples[folder.name]) if is_first else []
        for position, image in enumerate(images):
            image["id"] = f"image-{seed}-{number}-{position}"
        rows.append({"arm": arm, "color": arm_color(summary, arm), "images": images})
    return rows


def _single_images(folder: Path, examples: dict) -> list[dict]:
    shown = [{"label": "Samples nearest to a training image, above their three nearest", "file": "neighbours", "below": []}]
    for name in ("best", "worst"):
        below = [[f"{image[stage]:.1f}" for image in examples[name]] for stage in ("stage1", "stage2")]
        label = f"{name.capitalize()} reconstructed: original, stage 1, stage 2; PSNR in dB after each stage"
        shown.append({"label": label, "file": name, "below": below})
    if examples["has_interpolations"]:
        label = "Between two latents, in equal steps; real images at both ends"
        shown.append({"label": label, "file": "interpolations", "below": []})
    return [image | embed_grid(folder / f"{image['file']}.png") for image in shown]


def read_all_examples(summary: dict, folder: Path) -> dict[str, dict]:
    """``<arm>-<seed>`` -> its examples; raises as ``storage.examples.read_examples``."""
    return {f"{arm}-{seed}": read_examples(folder / f"{arm}-{seed}") for arm in summary["arm_names"] for seed in summary["seeds"]}


def range_rows(rows: list[tuple[str, str, list[float]]], form: str) -> list[dict]:
    """Sets of values on one axis, as the page draws them: where the middle half and nine tenths of each lie, in percent of the axis.

    Args:
        rows: label, colour and values of each.
        form: how a value is told, such as ``"{:.1f} dB"``.
    """
    quantiles = [np.quantile(values, QUANTILES) for _, _, values in rows]
    low, high = min(row[0] for row in quantiles), max(row[-1] for row in quantiles)
    places = [[f"{2 + 96 * (value - low) / ((high - low) or 1):.2f}" for value in row] for row in quantiles]
    return [
        {
            "label": label,
            "color": color,
            "places": of_row,
            "median": form.format(row[2]),
            "range": f"{form.format(row[0])} to {form.format(row[-1])}",
        }
        for (label, color, _), of_row, row in zip(rows, places, quantiles, strict=True)
    ]


def _read_png(path: Path) -> tuple[bytes, Image.Image]:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; run the stage that makes it: dvc repro evaluate@{path.parent.name}")
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return data, image.convert("RGB")
    except Exception as error:  # on damaged bytes PIL raises nearly anything, and DecompressionBombError for sizes that no grid has
        raise PipelineError(f"{path}: not a readable PNG ({error}); {_remake(path)}") from None


def _remake(path: Path) -> str:
    return f"run dvc repro --force evaluate@{path.parent.name}"


def _lossy(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=QUALITY, method=4)
    return _data_uri(buffer.getvalue(), "webp")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
