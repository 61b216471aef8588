"""Latents on disk: one Arrow IPC file per image shard, same keys in the same order, memory-mapped when read."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from errors import PipelineError
from storage.files import MANIFEST, read_json, sha256_bytes, sha256_file, write_atomic, write_json

FORMAT = "dae-latents-1"


@dataclass(frozen=True)
class LatentSpec:
    """What a latent file's metadata says of all its rows.

    Attributes:
        grid: latent positions (h, w).
        num_codes: size of the codebook the tokens index.
        frozen_sha256: the encoder they come from.
        shard: file name of the image shard.
        shard_sha256: its content.
    """

    grid: tuple[int, int]
    num_codes: int
    frozen_sha256: str
    shard: str
    shard_sha256: str

    def token_type(self) -> pa.DataType:
        return pa.uint16() if self.num_codes <= 1 << 16 else pa.int32()

    def schema(self) -> pa.Schema:
        """Columns and metadata of the Arrow file."""
        fields = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("tokens", pa.list_(self.token_type(), self.grid[0] * self.grid[1]), nullable=False),
        ]
        metadata = {
            "format": FORMAT,
            "grid": json.dumps(self.grid),
            "num_codes": str(self.num_codes),
            "frozen_sha256": self.frozen_sha256,
            "shard": self.shard,
            "shard_sha256": self.shard_sha256,
        }
        return pa.schema(fields, metadata=metadata)


def write_latents(path: Path, spec: LatentSpec, keys: Sequence[str], labels: Sequence[int], tokens: Tensor) -> dict:
    """Write one shard's latents, atomically and as one record batch, so that a reader sees one contiguous array.

    Args:
        tokens: (N, h, w) int64.

    Returns:
        the file's entry in the manifest.
    """
    if tokens.shape != (len(keys), *spec.grid):
        raise ValueError(f"tokens are {tuple(tokens.shape)}, expected {(len(keys), *spec.grid)}")
    flat = pa.array(tokens.numpy().reshape(-1), type=spec.token_type())
    columns = [
        pa.array(keys, pa.string()),
        pa.array(labels, pa.int32()),
        pa.FixedSizeListArray.from_arrays(flat, spec.grid[0] * spec.grid[1]),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, spec.schema()) as writer:
        writer.write_batch(pa.record_batch(columns, schema=spec.schema()))
    data = sink.getvalue().to_pybytes()
    write_atomic(path, data)
    made_from = {"shard": spec.shard, "shard_sha256": spec.shard_sha256}
    return {"name": path.name, "num_images": len(keys), "sha256": sha256_bytes(data), **made_from}


def write_latents_manifest(folder: Path, frozen_sha256: str, splits: dict[str, list[dict]]) -> None:
    """Write the folder's manifest from its files' entries."""
    tree = {name: {"num_images": sum(f["num_images"] for f in files), "files": files} for name, files in splits.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "frozen_sha256": frozen_sha256, "splits": tree})


class LatentDataset:
    """The latents of one split, in the order of its image shards, read from memory-mapped files.

    Attributes:
        keys: one per image.
        labels: one per image, -1 for none.
        grid: latent positions (h, w).
        num_codes: size of the codebook.

    Raises:
        PipelineError: when the latents are missing, damaged, or come from another encoder than ``frozen_sha256``.
    """

    def __init__(self, folder: Path, split: str, frozen_sha256: str | None = None):
        self.folder, self.split = folder, split
        manifest = read_json(folder / MANIFEST)
        self.frozen_sha256 = manifest["frozen_sha256"]
        if frozen_sha256 is not None and self.frozen_sha256 != frozen_sha256:
            raise PipelineError(
                f"{folder}: these latents come from frozen encoder {self.frozen_sha256[:16]}, but the frozen encoder here is "
                f"{frozen_sha256[:16]}; run dvc repro encode to remake them"
            )
        if split not in manifest["splits"]:
            raise PipelineError(f"{folder}: no split {split!r}; it has: {', '.join(manifest['splits'])}")
        self.files = manifest["splits"][split]["files"]
        self._open()
        for entry in self.files:
            if sha256_file(folder / entry["name"]) != entry["sha256"]:
                raise PipelineError(f"{folder / entry['name']}: damaged latents; delete the folder and run dvc repro encode")

    def _open(self) -> None:
        self.keys: list[str] = []
        self.labels: list[int] = []
        self._arrays: list[np.ndarray] = []
        self._starts: list[int] = []
        for entry in self.files:
            table, metadata = _read_table(self.folder / entry["name"])
            if metadata["frozen_sha256"] != self.frozen_sha256 or table.num_rows != entry["num_images"]:
                raise PipelineError(f"{self.folder / entry['name']}: does not match the folder's manifest; run dvc repro encode")
            self.grid = tuple(json.loads(metadata["grid"]))
            self.num_codes = int(metadata["num_codes"])
            self._starts.append(len(self.keys))
            self.keys += table.column("key").to_pylist()
            self.labels += table.column("label").to_pylist()
            values = table.column("tokens").chunk(0).flatten()
            self._arrays.append(values.to_numpy(zero_copy_only=True).reshape(-1, *self.grid))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"tokens": (B, h, w) int64}``; only the rows asked for are copied."""
        rows = [self._row(index) for index in indices]
        return {"tokens": torch.from_numpy(np.stack(rows).astype(np.int64))}

    def _row(self, index: int) -> np.ndarray:
        file = bisect_right(self._starts, index) - 1
        return self._arrays[file][index - self._starts[file]]

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "split": self.split, "files": self.files, "frozen_sha256": self.frozen_sha256}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()


def _read_table(path: Path) -> tuple[pa.Table, dict[str, str]]:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run dvc repro encode") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{path}: damaged latents ({error}); delete the folder and run dvc repro encode") from None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("format") != FORMAT:
        raise PipelineError(f"{path}: not latents in format {FORMAT}; run dvc repro encode")
    return table, metadata
