"""Latents on disk: the Arrow schema to the letter, the shard's keys in its order, mapped and not copied, refused when wrong."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from errors import PipelineError
from storage.files import sha256_file, write_json
from storage.latents import LatentDataset, LatentSpec, write_latents, write_latents_manifest

FROZEN, OTHER = "a" * 64, "b" * 64
GRID, NUM_CODES = (2, 3), 256
NUM_IMAGES = {"train-000000": 5, "train-000001": 3, "validation-000000": 4}


def spec(shard: str, num_codes: int = NUM_CODES, frozen_sha256: str = FROZEN) -> LatentSpec:
    return LatentSpec(GRID, num_codes, frozen_sha256, f"{shard}.tar", f"sha256 of {shard}")


def tokens_of(shard: str) -> torch.Tensor:
    return torch.randint(NUM_CODES, (NUM_IMAGES[shard], *GRID), generator=torch.Generator().manual_seed(len(shard) + NUM_IMAGES[shard]))


def latents_of(shard: str) -> dict[str, torch.Tensor]:
    return {"tokens": tokens_of(shard)}


def keys_of(shard: str) -> list[str]:
    return [f"{shard[0]}{shard[-1]}-{index}" for index in reversed(range(NUM_IMAGES[shard]))]  # in no alphabetical order


@pytest.fixture
def folder(tmp_path) -> Path:
    splits: dict[str, list] = {"train": [], "validation": []}
    for shard, num_images in NUM_IMAGES.items():
        labels = [index % 3 - 1 for index in range(num_images)]
        entry = write_latents(tmp_path / f"{shard}.arrow", spec(shard), keys_of(shard), labels, latents_of(shard))
        splits[shard.split("-")[0]].append(entry)
    write_latents_manifest(tmp_path, FROZEN, splits)
    return tmp_path


def refusal(folder: Path, split: str = "train", frozen_sha256: str | None = FROZEN) -> str:
    with pytest.raises(PipelineError) as error:
        LatentDataset(folder, split, frozen_sha256)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_golden_schema(folder):
    schema = pa.ipc.open_file(str(folder / "train-000000.arrow")).schema
    assert [(field.name, str(field.type), field.nullable) for field in schema] == [
        ("key", "string", False),
        ("label", "int32", False),
        ("tokens", "fixed_size_list<item: uint16>[6]", False),
    ]
    assert schema.metadata == {
        b"format": b"dae-latents-2",
        b"grid": b"[2, 3]",
        b"num_codes": b"256",
        b"frozen_sha256": FROZEN.encode(),
        b"shard": b"train-000000.tar",
        b"shard_sha256": b"sha256 of train-000000",
    }


def test_golden_manifest(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == {"format", "frozen_sha256", "splits"}
    assert (manifest["format"], manifest["frozen_sha256"]) == ("dae-latents-2", FROZEN)
    assert {split: tree["num_images"] for split, tree in manifest["splits"].items()} == {"train": 8, "validation": 4}
    first = manifest["splits"]["train"]["files"][0]
    assert first.keys() == {"name", "num_images", "sha256", "shard", "shard_sha256"}
    assert (first["name"], first["shard"], first["num_images"]) == ("train-000000.arrow", "train-000000.tar", 5)


def test_anyone_can_read_the_file(folder):
    """Row-major tokens, one list per image, without this project's code."""
    table = pa.ipc.open_file(str(folder / "train-000001.arrow")).read_all()
    assert table.column("key").to_pylist() == keys_of("train-000001")
    assert table.column("label").to_pylist() == [-1, 0, 1]
    assert table.column("tokens").to_pylist() == tokens_of("train-000001").flatten(1).tolist()
    assert table.column("tokens").num_chunks == 1


@pytest.mark.parametrize(("num_codes", "expected"), [(256, "uint16"), (65536, "uint16"), (65537, "int32"), (200_000, "int32")])
def test_tokens_are_as_wide_as_the_codebook_needs(tmp_path, num_codes, expected):
    tokens = torch.tensor([[[0, 1, 2], [3, 4, num_codes - 1]]])
    entry = write_latents(tmp_path / "a.arrow", spec("a", num_codes), ["key"], [-1], {"tokens": tokens})
    write_latents_manifest(tmp_path, FROZEN, {"train": [entry]})
    assert str(pa.ipc.open_file(str(tmp_path / "a.arrow")).schema.field("tokens").type.value_type) == expected
    dataset = LatentDataset(tmp_path, "train", FROZEN)
    assert torch.equal(dataset.batch([0])["tokens"], tokens) and dataset.num_codes == num_codes


def test_same_latents_are_the_same_bytes(tmp_path):
    arguments = spec("train-000000"), keys_of("train-000000"), [0] * 5, latents_of("train-000000")
    entries = [write_latents(tmp_path / name / "a.arrow", *arguments) for name in ("1", "2")]
    assert entries[0] == entries[1]
    assert (tmp_path / "1/a.arrow").read_bytes() == (tmp_path / "2/a.arrow").read_bytes()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["a.arrow"]


@pytest.mark.parametrize("shape", [(4, 2, 3), (5, 3, 2), (5, 6)])
def test_tokens_of_another_shape_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="expected"):
        write_latents(
            tmp_path / "a.arrow", spec("train-000000"), keys_of("train-000000"), [0] * 5, {"tokens": torch.zeros(shape, dtype=torch.int64)}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [-1, 1 << 16])
def test_token_that_does_not_fit_is_refused_and_not_wrapped(tmp_path, bad):
    with pytest.raises((pa.ArrowInvalid, OverflowError, ValueError)):
        write_latents(tmp_path / "a.arrow", spec("a"), ["key"], [0], {"tokens": torch.full((1, *GRID), bad)})
    assert not list(tmp_path.iterdir())


def test_rows_follow_the_shards(folder):
    dataset = LatentDataset(folder, "train", FROZEN)
    assert len(dataset) == 8 and dataset.grid == GRID and dataset.num_codes == NUM_CODES
    assert dataset.keys == keys_of("train-000000") + keys_of("train-000001")
    assert dataset.labels == [-1, 0, 1, -1, 0, -1, 0, 1]
    everything = torch.cat([tokens_of("train-000000"), tokens_of("train-000001")])
    assert torch.equal(dataset.batch(range(8))["tokens"], everything)
    shuffled = [7, 0, 4, 5, 5]  # the last and first of each file, and one twice
    batch = dataset.batch(shuffled)
    assert batch.keys() == {"tokens"} and batch["tokens"].dtype == torch.int64
    assert torch.equal(batch["tokens"], everything[shuffled])


def mapped_file(address: int) -> str:
    """The file whose memory mapping holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[5:])
    return ""


def test_tokens_stay_in_the_file(folder):
    dataset = LatentDataset(folder, "train", FROZEN)
    addresses = [array.__array_interface__["data"][0] for array in dataset._columns["tokens"]]
    assert [Path(mapped_file(address)).name for address in addresses] == ["train-000000.arrow", "train-000001.arrow"]


def test_batch_is_a_copy_that_may_be_changed(folder):
    dataset = LatentDataset(folder, "train", FROZEN)
    before = (folder / "train-000000.arrow").read_bytes()
    dataset.batch([0])["tokens"].zero_()
    assert torch.equal(dataset.batch([0])["tokens"], tokens_of("train-000000")[:1])
    assert (folder / "train-000000.arrow").read_bytes() == before


def test_copy_for_another_process_maps_the_files_again(folder):
    dataset = LatentDataset(folder, "train", FROZEN)
    data = pickle.dumps(dataset)
    copy = pickle.loads(data)
    assert len(data) < 2000
    assert copy.keys == dataset.keys and torch.equal(copy.batch(range(8))["tokens"], dataset.batch(range(8))["tokens"])
    assert mapped_file(copy._columns["tokens"][0].__array_interface__["data"][0]).endswith("train-000000.arrow")


class Rows(Dataset):
    """Latents one by one."""

    def __init__(self, latents: LatentDataset):
        self.latents = latents

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.latents.batch([index])["tokens"][0]


def test_loader_processes_read_the_same(folder):
    dataset = LatentDataset(folder, "train", FROZEN)
    loader = DataLoader(Rows(dataset), batch_size=3, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), dataset.batch(range(8))["tokens"])


def test_another_encoder_is_refused_with_both_hashes(folder):
    message = refusal(folder, frozen_sha256=OTHER)
    assert FROZEN[:16] in message and OTHER[:16] in message and "dvc repro encode" in message
    assert LatentDataset(folder, "train").frozen_sha256 == FROZEN


def test_file_of_another_encoder_in_the_folder_is_refused(folder):
    shard = "train-000001"
    write_latents(folder / f"{shard}.arrow", spec(shard, frozen_sha256=OTHER), keys_of(shard), [0] * 3, latents_of(shard))
    assert "train-000001.arrow" in refusal(folder)


def test_file_with_other_rows_than_the_manifest_says_is_refused(folder):
    shard = "train-000001"
    write_latents(folder / f"{shard}.arrow", spec(shard), keys_of(shard)[:2], [0] * 2, {"tokens": tokens_of(shard)[:2]})
    assert "train-000001.arrow" in refusal(folder)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "flipped token"])
def test_damaged_file_is_one_line_that_names_it(folder, damage):
    path = folder / "train-000000.arrow"
    data = path.read_bytes()
    path.unlink()
    position = data.index(tokens_of("train-000000").numpy().astype(np.uint16).tobytes())
    contents = {
        "empty": b"",
        "truncated": data[:-100],
        "garbage": b"no arrow here" * 50,
        "flipped token": data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :],
    }
    if damage != "missing":
        path.write_bytes(contents[damage])
    message = refusal(folder)
    assert str(path) in message and "dvc repro" in message


def test_arrow_file_of_another_format_is_refused(folder):
    table = pa.table({"key": ["a"]})
    with pa.ipc.new_file(str(folder / "train-000000.arrow"), table.schema) as writer:
        writer.write(table)
    assert "train-000000.arrow" in refusal(folder)


def test_manifest_of_another_format_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("dae-latents-2", "dae-latents-0"))
    assert f"{path}: not latents in format dae-latents-2; run dvc repro encode" in refusal(folder)


def test_unknown_split_and_missing_manifest_are_one_line(folder):
    assert "train, validation" in refusal(folder, "test")
    (folder / "manifest.json").unlink()
    assert "manifest.json" in refusal(folder)


def rewrite(folder: Path, table: pa.Table, name: str = "train-000000.arrow", new=pa.ipc.new_file, **options) -> None:
    """Put a table in the place of one of the files, and its hash into the manifest, as foreign files would come."""
    with new(str(folder / name), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    vouch(folder, name)


def vouch(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for tree in manifest["splits"].values():
        for entry in tree["files"]:
            if entry["name"] == name:
                entry["sha256"] = sha256_file(folder / name)
    write_json(folder / "manifest.json", manifest)


def table_of(folder: Path, name: str = "train-000000.arrow") -> pa.Table:
    with pa.OSFile(str(folder / name)) as file:  # not mapped: it is about to be written over
        return pa.ipc.open_file(file).read_all()


def with_column(table: pa.Table, name: str, values, nullable: bool = False) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, pa.field(name, values.type, nullable=nullable), values)


def with_null(table: pa.Table, name: str) -> pa.Table:
    """With a null in a column that says it has none."""
    kind = table.schema.field(name).type
    return with_column(table, name, pa.array([None, *table.column(name).to_pylist()[1:]], kind))


def with_token(table: pa.Table, token: int | None) -> pa.Table:
    tokens = table.column("tokens").to_pylist()
    tokens[1][2] = token
    return with_column(table, "tokens", pa.array(tokens, table.schema.field("tokens").type))


SPOILT = {
    "keys as a dictionary": lambda t: with_column(t, "key", t.column("key").dictionary_encode()),
    "long strings": lambda t: with_column(t, "key", t.column("key").cast(pa.large_string())),
    "binary keys": lambda t: with_column(t, "key", t.column("key").cast(pa.binary())),
    "wide labels": lambda t: with_column(t, "label", t.column("label").cast(pa.int64())),
    "nullable labels": lambda t: with_column(t, "label", t.column("label"), nullable=True),
    "no key for an image": lambda t: with_null(t, "key"),
    "no label for an image": lambda t: with_null(t, "label"),
    "no tokens for an image": lambda t: with_null(t, "tokens"),
    "no token somewhere": lambda t: with_token(t, None),
    "a token beyond the codebook": lambda t: with_token(t, NUM_CODES),
    "signed tokens": lambda t: with_column(t, "tokens", t.column("tokens").cast(pa.list_(pa.int16(), 6))),
    "lists of any length": lambda t: with_column(t, "tokens", t.column("tokens").cast(pa.list_(pa.uint16()))),
    "another column": lambda t: t.append_column("more", t.column("label")),
    "no labels": lambda t: t.drop_columns("label"),
    "columns in another order": lambda t: t.select(["label", "key", "tokens"]),
    "two batches": lambda t: pa.concat_tables([t.slice(0, 2), t.slice(2)]),
    "no rows": lambda t: t.slice(0, 0),
    "a row less": lambda t: t.slice(1),
    "an extension type": lambda t: with_column(t, "label", pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0] * 5, pa.int8()))),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_of_other_columns_is_refused_though_the_manifest_vouches_for_it(folder, how):
    rewrite(folder, SPOILT[how](table_of(folder)))
    assert "train-000000.arrow" in refusal(folder)


def test_a_stream_is_refused_and_compressed_columns_are_read(folder):
    expected, table = LatentDataset(folder, "train").batch(range(8))["tokens"], table_of(folder)
    rewrite(folder, table, compression="zstd")
    assert torch.equal(LatentDataset(folder, "train").batch(range(8))["tokens"], expected)
    rewrite(folder, table, new=pa.ipc.new_stream)
    assert "train-000000.arrow: damaged latents" in refusal(folder)


@pytest.mark.parametrize(("key", "value"), [("num_codes", b"255"), ("grid", b"[3, 2]"), ("shard", b"b.tar"), ("shard_sha256", b"0")])
def test_a_file_of_another_kind_or_shard_is_refused(folder, key, value):
    table = table_of(folder)
    rewrite(folder, table.replace_schema_metadata({**table.schema.metadata, key.encode(): value}))
    refusal(folder)


def test_a_file_that_the_manifest_has_lost_is_missed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["splits"]["train"]["files"][1]
    write_json(folder / "manifest.json", manifest)
    assert "manifest.json: the files of train have another number of images than it says" in refusal(folder)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
    (folder / "train-000000.arrow").unlink()
    os.mkfifo(folder / "train-000000.arrow")
    assert "train-000000.arrow: is not a file" in refusal(folder)


METADATA = [b"format", b"grid", b"num_codes", b"frozen_sha256", b"shard", b"shard_sha256", b"num_channels", b"views", b"statistics"]
VALUES = st.sampled_from(
    [None, b"", b"0", b"-1", b"256", b"1" * 5000, b"[2, 3]", b"[-2, -3]", b"[3, 2]", b"[2]", b"6", b"[2.0, 3]", b"null", b"NaN", b"\xff",
     b"[" * 5000, b"[9000000000, 9000000000]", b'["a", "b"]', b"[true, 6]", b"{}", b"dae-latents-2"]
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(METADATA), VALUES, min_size=1, max_size=3))
def test_any_metadata_is_read_as_what_it_was_or_refused(tmp_path_factory, changed):
    folder = latents_in(tmp_path_factory)
    table, expected = table_of(folder), tokens_of("train-000000")
    metadata = {key: value for key, value in {**table.schema.metadata, **changed}.items() if value is not None}
    rewrite(folder, table.replace_schema_metadata(metadata))
    read_or_refuse(folder, lambda dataset: torch.equal(dataset.batch(range(5))["tokens"], expected))


@given(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12) | st.sampled_from([b"\xff" * 8, b"\0" * 16, b"\x7f\xff\xff\xff"]))
def test_any_bytes_are_latents_or_refused(tmp_path_factory, place, num_deleted, inserted):
    """The manifest vouches for each: Arrow and the checks have to do without the hash."""
    folder = latents_in(tmp_path_factory)
    path = folder / "train-000000.arrow"
    data = path.read_bytes()
    start = int(place * len(data))
    path.write_bytes(data[:start] + inserted + data[start + num_deleted :])
    vouch(folder, path.name)

    def is_sound(dataset: LatentDataset) -> bool:
        tokens = dataset.batch(range(8))["tokens"]
        return (
            tokens.shape == (8, *GRID) and 0 <= tokens.min() <= tokens.max() < NUM_CODES and len(dataset.keys) == len(dataset.labels) == 8
        )

    read_or_refuse(folder, is_sound)


def latents_in(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    entries = [
        write_latents(folder / f"{shard}.arrow", spec(shard), keys_of(shard), [0] * NUM_IMAGES[shard], latents_of(shard))
        for shard in ("train-000000", "train-000001")
    ]
    write_latents_manifest(folder, FROZEN, {"train": entries})
    return folder


def read_or_refuse(folder: Path, is_right) -> None:
    try:
        dataset = LatentDataset(folder, "train", FROZEN)
    except PipelineError as error:
        assert str(folder) in str(error) and str(error).isprintable()
        return
    assert is_right(dataset)
