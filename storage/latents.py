"""Latents on disk: one Arrow IPC file per image shard, same keys in the same order, memory-mapped when read.

Discrete ones are a column ``tokens``, continuous ones the columns ``mean`` and ``logvar``. Where mirror images were
encoded too, a column ``<name>_flipped`` beside each holds them: row i of both comes from image i of the shard.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from errors import PipelineError
from storage.files import MANIFEST, read_json, require_file, require_format, sha256_bytes, sha256_file, write_atomic, write_json
from storage.moments import MomentsRecord, combine_moments, measure_moments, statistics_of

FORMAT = "dae-latents-2"
INFINITE = 0x7C00  # the bits of a half-precision number's exponent: all set, it is none
VIEWS = ("original", "horizontal_flip")  # of an image, by number
FLIPPED = "_flipped"  # ends the names of the second view's columns


@dataclass(frozen=True)
class LatentSpec:
    """What a latent file's metadata says of all its rows.

    Attributes:
        grid: latent positions (h, w).
        num_codes: size of the codebook the tokens index; None: the latents are continuous.
        frozen_sha256: the encoder they come from.
        shard: file name of the image shard.
        shard_sha256: its content.
        num_channels: of continuous latents; None: they are tokens.
        num_views: 2 with mirror images, else 1.
        statistics: of continuous latents, ``{"mean", "std_of_means", "std_of_samples"}`` per channel over all training images.
    """

    grid: tuple[int, int]
    num_codes: int | None
    frozen_sha256: str
    shard: str
    shard_sha256: str
    num_channels: int | None = None
    num_views: int = 1
    statistics: dict[str, list[float]] | None = None

    def columns(self) -> dict[str, pa.DataType]:
        """Name and type of every column of latents."""
        if self.num_channels is None:
            token_type = pa.uint16() if self.num_codes <= 1 << 16 else pa.int32()
            names, stored = ("tokens",), pa.list_(token_type, self.grid[0] * self.grid[1])
        else:
            names, stored = ("mean", "logvar"), pa.fixed_shape_tensor(pa.float16(), (self.num_channels, *self.grid))
        return {name + suffix: stored for suffix in ("", FLIPPED)[: self.num_views] for name in names}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's latents."""
        return self.grid if self.num_channels is None else (self.num_channels, *self.grid)

    def schema(self) -> pa.Schema:
        """Columns and metadata of the Arrow file."""
        fields = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            *(pa.field(name, stored, nullable=False) for name, stored in self.columns().items()),
        ]
        kind = {"num_codes": str(self.num_codes)} if self.num_channels is None else {"num_channels": str(self.num_channels)}
        metadata = {
            "format": FORMAT,
            "grid": json.dumps(self.grid),
            **kind,
            "frozen_sha256": self.frozen_sha256,
            "shard": self.shard,
            "shard_sha256": self.shard_sha256,
        }
        if self.num_views > 1:
            metadata["views"] = json.dumps(
                {view: [n for n in self.columns() if n.endswith(FLIPPED) == number] for number, view in enumerate(VIEWS)}
            )
        if self.statistics is not None:
            metadata["statistics"] = json.dumps(self.statistics)
        return pa.schema(fields, metadata=metadata)


def write_latents(path: Path, spec: LatentSpec, keys: Sequence[str], labels: Sequence[int], latents: dict[str, Tensor]) -> dict:
    """Write one shard's latents, atomically and as one record batch, so that a reader sees one contiguous array.

    Args:
        latents: per column ``tokens`` (N, h, w) int64, or ``mean`` and ``logvar`` (N, D, h, w).

    Returns:
        the file's entry in the manifest.

    Raises:
        PipelineError: when a continuous latent does not fit half precision.
    """
    if set(latents) != set(spec.columns()):
        raise ValueError(f"latents are {sorted(latents)}, expected {sorted(spec.columns())}")
    for name, values in latents.items():
        if values.shape != (len(keys), *spec.shape):
            raise ValueError(f"{name} is {tuple(values.shape)}, expected {(len(keys), *spec.shape)}")
    columns, moments = [], {}
    if spec.num_channels is None:
        columns = [_token_array(latents[name], stored) for name, stored in spec.columns().items()]
    else:
        arrays = {name: _half_precision(latents[name], name, spec.shard) for name in spec.columns()}
        columns = [_tensor_array(arrays[name], stored) for name, stored in spec.columns().items()]
        views = [(arrays["mean" + suffix], arrays["logvar" + suffix]) for suffix in ("", FLIPPED)[: spec.num_views]]
        moments = {"moments": combine_moments([measure_moments(*view) for view in views])}
    sha256 = _write_table(path, spec.schema(), [pa.array(keys, pa.string()), pa.array(labels, pa.int32()), *columns])
    made_from = {"shard": spec.shard, "shard_sha256": spec.shard_sha256}
    return {"name": path.name, "num_images": len(keys), "sha256": sha256, **moments, **made_from}


def _token_array(tokens: Tensor, stored: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(tokens.numpy().reshape(-1), type=stored.value_type), stored.list_size)


def _tensor_array(values: np.ndarray, stored: pa.DataType) -> pa.Array:
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), stored.storage_type.list_size)
    return pa.ExtensionArray.from_storage(stored, storage)


def _half_precision(values: Tensor, name: str, shard: str) -> np.ndarray:
    halved = values.to(torch.float16)
    if not torch.isfinite(halved).all():
        raise PipelineError(
            f"{shard}: the {name} of some image does not fit half precision (largest: {values.abs().max().item():.3g}); "
            "raise bottleneck.kl_weight, which keeps latents near a standard normal, and train stage 1 again"
        )
    return np.ascontiguousarray(halved.numpy())


def _write_table(path: Path, schema: pa.Schema, columns: list[pa.Array]) -> str:
    """Write and return the content's sha256."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    data = sink.getvalue().to_pybytes()
    write_atomic(path, data)
    return sha256_bytes(data)


def add_statistics(source: Path, target: Path, entry: dict, statistics: dict[str, list[float]]) -> dict:
    """Copy a file of continuous latents with the whole training set's statistics in its metadata; returns its new entry."""
    table, metadata = _read_table(source)
    schema = table.schema.with_metadata({**metadata, "statistics": json.dumps(statistics)})
    return {**entry, "sha256": _write_table(target, schema, [column.chunk(0) for column in table.columns])}


def write_latents_manifest(folder: Path, frozen_sha256: str, splits: dict[str, list[dict]]) -> None:
    """Write the folder's manifest from its files' entries."""
    tree = {name: {"num_images": sum(f["num_images"] for f in files), "files": files} for name, files in splits.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "frozen_sha256": frozen_sha256, "splits": tree})


class LatentsEntry(BaseModel):
    name: Annotated[str, Field(pattern=r"^[^/]+$")]
    num_images: int
    sha256: str
    shard: str
    shard_sha256: str
    moments: MomentsRecord | None = None


class LatentsSplit(BaseModel):
    num_images: int
    files: list[LatentsEntry]


class LatentsRecord(BaseModel):
    """What manifest.json of a folder of latents must hold."""

    format: str
    frozen_sha256: str
    splits: dict[str, LatentsSplit]


class LatentDataset:
    """The latents of one split, in the order of its image shards, read from memory-mapped files.

    Attributes:
        keys: one per image.
        labels: one per image, -1 for none.
        grid: latent positions (h, w).
        num_codes: size of the codebook; None: continuous latents.
        num_channels: of continuous latents; None: tokens.
        num_views: 2 where mirror images were encoded too, else 1.

    Raises:
        PipelineError: when the latents are missing, damaged, in another format, or come from another encoder than ``frozen_sha256``.
    """

    def __init__(self, folder: Path, split: str, frozen_sha256: str | None = None):
        self.folder, self.split = folder, split
        manifest = read_json(folder / MANIFEST, LatentsRecord)
        require_format(folder / MANIFEST, manifest["format"], FORMAT, "latents", "dvc repro encode")
        self.frozen_sha256 = manifest["frozen_sha256"]
        if frozen_sha256 is not None and self.frozen_sha256 != frozen_sha256:
            raise PipelineError(
                f"{folder}: these latents come from frozen encoder {self.frozen_sha256[:16]}, but the frozen encoder here is "
                f"{frozen_sha256[:16]}; run dvc repro encode to remake them"
            )
        if split not in manifest["splits"]:
            raise PipelineError(f"{folder}: no split {split!r}; it has: {', '.join(manifest['splits'])}")
        self.files = manifest["splits"][split]["files"]
        if not self.files:
            raise PipelineError(f"{folder / MANIFEST}: names no files of {split}; delete the folder and run dvc repro encode")
        if sum(entry["num_images"] for entry in self.files) != manifest["splits"][split]["num_images"]:
            raise _refuse(folder / MANIFEST, f"the files of {split} have another number of images than it says")
        self._moments = [entry.get("moments") for entry in manifest["splits"].get("train", {"files": []})["files"]]
        for entry in self.files:
            path = folder / entry["name"]
            if path.is_file() and sha256_file(path) != entry["sha256"]:
                raise _refuse(path, "damaged latents (its SHA-256 is another)")
        self._open()
        self._require_values()

    def _open(self) -> None:
        kinds: list[LatentSpec] = []
        self.keys: list[str] = []
        self.labels: list[int] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._starts: list[int] = []
        self._stated_statistics: list[dict | None] = []
        for entry in self.files:
            path = self.folder / entry["name"]
            table, spec = _read_stated(path)
            found = spec.frozen_sha256, spec.shard, spec.shard_sha256, table.num_rows
            if found != (self.frozen_sha256, entry["shard"], entry["shard_sha256"], entry["num_images"]):
                raise PipelineError(f"{path}: does not match the folder's manifest; run dvc repro encode")
            self.grid, self.num_codes, self.num_channels, self.num_views = spec.grid, spec.num_codes, spec.num_channels, spec.num_views
            kinds.append(replace(spec, shard="", shard_sha256="", statistics=None))
            if kinds[-1] != kinds[0]:
                raise _refuse(path, f"its latents are of another kind than those of {self.files[0]['name']}")
            self._stated_statistics.append(spec.statistics)
            self._starts.append(len(self.keys))
            self.keys += table.column("key").to_pylist()
            self.labels += table.column("label").to_pylist()
            for name in table.column_names[2:]:
                self._columns.setdefault(name, []).append(self._mapped(table.column(name).chunk(0)))

    def _mapped(self, column: pa.Array) -> np.ndarray:
        """A column as an array that lies in the memory-mapped file, (N, h, w) or (N, D, h, w)."""
        shape = self.grid if self.num_channels is None else (self.num_channels, *self.grid)
        lists = column if self.num_channels is None else column.storage
        return lists.flatten().to_numpy(zero_copy_only=True).reshape(-1, *shape)

    def _require_values(self) -> None:
        """Refuse tokens that are no code's, with which a prior would learn from other codes, and numbers that are not finite."""
        for name, parts in self._columns.items():
            for entry, values in zip(self.files, parts, strict=True):
                if self.num_channels is None:
                    is_odd = values.size and not 0 <= values.min() <= values.max() < self.num_codes
                else:
                    is_odd = (values.view(np.uint16) & INFINITE == INFINITE).any()
                if is_odd:
                    raise _refuse(self.folder / entry["name"], f"{name} has values that are no latents")

    def __len__(self) -> int:
        return len(self.keys)

    def statistics(self, latent: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) float64 of each channel of continuous latents over all training images and views.

        Args:
            latent: of what: ``"sample"``, a sample of each latent, or ``"mean"``, its mean.

        Raises:
            PipelineError: when a file's metadata states others than the training files' own moments come to.
        """
        lengths = {len(values) for part in self._moments for values in (part or {"": ()}).values() if not isinstance(values, int)}
        actual = statistics_of(combine_moments(self._moments)) if lengths == {self.num_channels} else None
        for entry, stated in zip(self.files, self._stated_statistics, strict=True):
            if actual is None or stated != actual:
                raise PipelineError(
                    f"{self.folder / entry['name']}: its statistics are not those of the training latents; run dvc repro encode"
                )
        return torch.tensor(actual["mean"], dtype=torch.float64), torch.tensor(actual[f"std_of_{latent}s"], dtype=torch.float64)

    def batch(self, indices: Sequence[int], view: int = 0) -> dict[str, Tensor]:
        """``{"tokens": (B, h, w) int64}`` or ``{"mean", "logvar": (B, D, h, w) fp32}``; only the rows asked for are copied.

        Args:
            view: 0: of the images as they are; 1: of their mirror images.
        """
        if view >= self.num_views:
            raise ValueError(f"view {view} of {self.num_views}")
        dtype = np.int64 if self.num_channels is None else np.float32
        chosen = {name.removesuffix(FLIPPED): parts for name, parts in self._columns.items() if name.endswith(FLIPPED) == bool(view)}
        return {
            name: torch.from_numpy(np.stack([self._row(parts, index) for index in indices]).astype(dtype)) for name, parts in chosen.items()
        }

    def _row(self, parts: list[np.ndarray], index: int) -> np.ndarray:
        file = bisect_right(self._starts, index) - 1
        return parts[file][index - self._starts[file]]

    def __getstate__(self) -> dict:
        return {name: vars(self)[name] for name in ("folder", "split", "files", "frozen_sha256", "_moments")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()


def _read_table(path: Path) -> tuple[pa.Table, dict[str, str]]:
    require_file(path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _refuse(path, f"damaged latents ({' '.join(str(error).split())})") from None
    require_format(path, metadata.get("format"), FORMAT, "latents", "dvc repro encode")
    return table, metadata


def _read_stated(path: Path) -> tuple[pa.Table, LatentSpec]:
    """A file's table and what its metadata says of it, to which its columns are held: as ``write_latents`` leaves them, in one piece."""
    table, metadata = _read_table(path)
    try:
        spec = _parse(metadata)
        is_as_stated = table.schema.equals(spec.schema())
    except (pa.ArrowException, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise _refuse(path, f"its metadata describes no latents ({type(error).__name__}: {error})") from None
    if not is_as_stated or any(column.num_chunks != 1 or _has_nulls(column.chunk(0)) for column in table.columns):
        raise _refuse(path, "its columns are not what its metadata says, in one batch and without nulls")
    return table, spec


def _has_nulls(column: pa.Array) -> bool:
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    inner = column.flatten().null_count if pa.types.is_fixed_size_list(column.type) else 0
    return column.null_count + inner > 0


def _parse(metadata: dict[str, str]) -> LatentSpec:
    spec = LatentSpec(
        grid=tuple(json.loads(metadata["grid"])),
        num_codes=int(metadata["num_codes"]) if "num_codes" in metadata else None,
        frozen_sha256=metadata["frozen_sha256"],
        shard=metadata["shard"],
        shard_sha256=metadata["shard_sha256"],
        num_channels=int(metadata["num_channels"]) if "num_channels" in metadata else None,
        num_views=len(VIEWS) if "views" in metadata else 1,
        statistics=json.loads(metadata.get("statistics", "null")),
    )
    if len(spec.grid) != 2 or min(spec.shape) < 1 or (spec.num_codes is None) == (spec.num_channels is None):
        raise ValueError(f"grid {spec.grid}, num_codes {spec.num_codes}, num_channels {spec.num_channels}")
    return spec


def _refuse(path: Path, what: str) -> PipelineError:
    return PipelineError(f"{path}: {what}; delete the folder and run dvc repro encode")
