"""Images side by side in one PNG, pixel for pixel."""

import math
from pathlib import Path

import torch
from torch import nn

from storage.files import write_atomic
from storage.shards import encode_image

GAP = 2  # pixels of white between images
WHITE = 255


def write_grid(path: Path, images: torch.Tensor, num_columns: int | None = None) -> None:
    """Write uint8 images (N, 3, H, W), row by row, as one picture; of about as many rows as columns, unless it is said how many."""
    num_columns = num_columns or math.ceil(math.sqrt(len(images)))
    num_rows = math.ceil(len(images) / num_columns)
    tiles = nn.functional.pad(images, (0, GAP, 0, GAP), value=WHITE)  # (N, 3, h, w)
    blank = torch.full((num_rows * num_columns - len(images), *tiles.shape[1:]), WHITE, dtype=torch.uint8)
    tiles = torch.cat([tiles, blank]).unflatten(0, (num_rows, num_columns))  # (R, C, 3, h, w)
    canvas = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (R * h, C * w, 3)
    write_atomic(path, encode_image(canvas[:-GAP, :-GAP].numpy(), "png"))
