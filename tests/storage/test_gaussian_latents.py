"""Continuous latents on disk: the Arrow schema to the letter, mapped and not copied, both views, statistics exact and checked."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from errors import PipelineError
from storage.latents import LatentDataset, LatentSpec, add_statistics, write_latents, write_latents_manifest
from storage.moments import combine_moments, measure_moments, statistics_of
from tests.reporting.experiment import edit_json
from tests.spoiling import survives
from tests.storage.test_latents import mapped_file, rewrite, table_of, with_column

FROZEN = "a" * 64
SHAPE = (3, 2, 4)  # channels, height, width: all different, so that none can stand for another
NUM_IMAGES = {"train-000000": 5, "train-000001": 3, "validation-000000": 4}
TENSOR = "extension<arrow.fixed_shape_tensor[value_type=halffloat, shape=[3,2,4]]>"


def gaussians(shard: str, num_views: int) -> dict[str, torch.Tensor]:
    """Means far from zero, with channels of very different scales, as an encoder without a KL term gives them."""
    generator = torch.Generator().manual_seed(len(shard) + NUM_IMAGES[shard])
    latents = {}
    for suffix in ("", "_flipped")[:num_views]:
        scale = torch.tensor([0.01, 1.0, 30.0])[:, None, None]
        latents["mean" + suffix] = 40 + scale * torch.randn(NUM_IMAGES[shard], *SHAPE, generator=generator)
        latents["logvar" + suffix] = torch.randn(NUM_IMAGES[shard], *SHAPE, generator=generator) - 3
    return latents


def write(folder: Path, num_views: int = 1) -> Path:
    """A folder as the encode stage writes it; validation images have one view."""
    entries: dict[str, list[dict]] = {"train": [], "validation": []}
    for shard, number in NUM_IMAGES.items():
        split = shard.split("-")[0]
        views = num_views if split == "train" else 1
        spec = LatentSpec(SHAPE[1:], None, FROZEN, f"{shard}.tar", f"sha256 of {shard}", SHAPE[0], views)
        keys = [f"{shard}-{index}" for index in range(number)]
        entries[split].append(write_latents(folder / f"{shard}.raw", spec, keys, [-1] * number, gaussians(shard, views)))
    statistics = statistics_of(combine_moments([entry["moments"] for entry in entries["train"]]))
    for made in entries.values():
        for position, entry in enumerate(made):
            raw, final = folder / entry["name"], (folder / entry["name"]).with_suffix(".arrow")
            made[position] = {**add_statistics(raw, final, entry, statistics), "name": final.name}
            raw.unlink()
    write_latents_manifest(folder, FROZEN, entries)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path)


def test_golden_schema(folder):
    schema = pa.ipc.open_file(str(folder / "train-000000.arrow")).schema
    assert [(field.name, str(field.type), field.nullable) for field in schema] == [
        ("key", "string", False),
        ("label", "int32", False),
        ("mean", TENSOR, False),
        ("logvar", TENSOR, False),
    ]
    statistics = json.loads(schema.metadata[b"statistics"])
    assert statistics.keys() == {"mean", "std_of_means", "std_of_samples"} and all(len(values) == 3 for values in statistics.values())
    assert {name: value for name, value in schema.metadata.items() if name != b"statistics"} == {
        b"format": b"dae-latents-2",
        b"grid": b"[2, 4]",
        b"num_channels": b"3",
        b"frozen_sha256": FROZEN.encode(),
        b"shard": b"train-000000.tar",
        b"shard_sha256": b"sha256 of train-000000",
    }


def test_mirror_images_are_columns_of_their_own_and_the_metadata_says_so(tmp_path):
    schema = pa.ipc.open_file(str(write(tmp_path, num_views=2) / "train-000000.arrow")).schema
    assert schema.names == ["key", "label", "mean", "logvar", "mean_flipped", "logvar_flipped"]
    views = {"original": ["mean", "logvar"], "horizontal_flip": ["mean_flipped", "logvar_flipped"]}
    assert json.loads(schema.metadata[b"views"]) == views
    train, validation = (LatentDataset(tmp_path, split, FROZEN) for split in ("train", "validation"))
    assert (train.num_views, validation.num_views) == (2, 1)
    assert train.keys[:2] == ["train-000000-0", "train-000000-1"]  # the shard's, each once
    expected = gaussians("train-000001", 2)
    for view, suffix in enumerate(("", "_flipped")):
        batch = train.batch([5, 7], view)
        assert batch.keys() == {"mean", "logvar"} and batch["mean"].dtype == torch.float32
        assert torch.equal(batch["mean"], expected["mean" + suffix][[0, 2]].half().float())
        assert torch.equal(batch["logvar"], expected["logvar" + suffix][[0, 2]].half().float())
    with pytest.raises(ValueError, match="view 1 of 1"):
        validation.batch([0], view=1)


@pytest.mark.parametrize("num_views", [1, 2])
def test_statistics_are_those_of_all_training_latents_their_means_and_samples_of_them(tmp_path, num_views):
    """Against numpy over everything at once, and against samples; both splits state them."""
    write(tmp_path, num_views)
    shards = [gaussians(shard, num_views) for shard in ("train-000000", "train-000001")]

    def values(name):
        parts = [shard[name + suffix] for shard in shards for suffix in ("", "_flipped")[:num_views]]
        return torch.cat(parts).half().numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)

    train = LatentDataset(tmp_path, "train", FROZEN)
    mean, std = train.statistics("sample")
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean, values("mean").mean(1), rtol=1e-14)
    np.testing.assert_allclose(std, np.sqrt(values("mean").var(1) + np.exp(values("logvar")).mean(1)), rtol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(LatentDataset(tmp_path, "validation").statistics("sample"), (mean, std), strict=True))
    assert torch.equal(train.statistics("mean")[0], mean)
    np.testing.assert_allclose(train.statistics("mean")[1], values("mean").std(1), rtol=1e-13)
    noise = np.random.default_rng(0).standard_normal((400, *values("mean").shape))
    samples = values("mean") + np.exp(values("logvar") / 2) * noise
    np.testing.assert_allclose(std, samples.std(axis=(0, 2)), rtol=0.02)


def test_moments_combine_to_those_of_the_whole_whatever_the_parts():
    mean, logvar = (gaussians("train-000000", 1)[name].half().numpy() for name in ("mean", "logvar"))
    whole = statistics_of(measure_moments(mean, logvar))
    for cut in (1, 2, 4):
        parts = statistics_of(combine_moments([measure_moments(mean[s], logvar[s]) for s in (slice(cut), slice(cut, None))]))
        for name in ("mean", "std_of_means", "std_of_samples"):
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-13)


@pytest.mark.parametrize("file", ["manifest.json", "train-000001.arrow"])
def test_statistics_that_are_not_the_training_latents_are_refused(folder, file):
    manifest = json.loads((folder / "manifest.json").read_text())
    if file == "manifest.json":
        manifest["splits"]["train"]["files"][0]["moments"]["mean"][0] += 1e-9
    else:
        entry = manifest["splits"]["train"]["files"][1]
        (folder / file).rename(folder / "old")
        wrong = {"mean": [0.0] * 3, "std_of_means": [1.0] * 3, "std_of_samples": [1.0] * 3}
        manifest["splits"]["train"]["files"][1] = add_statistics(folder / "old", folder / file, entry, wrong)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match=r"\.arrow: its statistics are not those of the training latents; run dvc repro encode"):
        _ = LatentDataset(folder, "train", FROZEN).statistics("sample")


def test_latents_stay_in_the_file_also_in_another_process(folder):
    for dataset in (data := LatentDataset(folder, "train", FROZEN), pickle.loads(pickle.dumps(data))):
        for name in ("mean", "logvar"):
            addresses = [array.__array_interface__["data"][0] for array in dataset._columns[name]]
            assert [Path(mapped_file(address)).name for address in addresses] == ["train-000000.arrow", "train-000001.arrow"]
        assert len(dataset.statistics("mean")) == 2


def test_what_half_precision_cannot_hold_is_refused_and_not_made_infinite(tmp_path):
    spec = LatentSpec(SHAPE[1:], None, FROZEN, "a.tar", "sha256 of a", SHAPE[0])
    latents = {"mean": torch.full((1, *SHAPE), 7e4), "logvar": torch.zeros(1, *SHAPE)}
    with pytest.raises(PipelineError, match=r"a\.tar: the mean of some image .*7e\+04.* raise bottleneck.kl_weight"):
        write_latents(tmp_path / "a.arrow", spec, ["key"], [-1], latents)
    assert not list(tmp_path.iterdir())


def test_anyone_can_read_the_file(folder):
    """As tensors of the same shape, without this project's code."""
    table = pa.ipc.open_file(str(folder / "train-000001.arrow")).read_all()
    assert np.array_equal(table.column("mean").chunk(0).to_numpy_ndarray(), gaussians("train-000001", 1)["mean"].half().numpy())


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_values_that_are_not_finite_are_refused_though_the_manifest_vouches_for_them(folder, bits):
    table = table_of(folder)
    column = table.column("logvar").chunk(0)
    values = column.to_numpy_ndarray().copy()
    values.view(np.uint16)[3, 2, 1, 0] = bits
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 24)
    rewrite(folder, with_column(table, "logvar", pa.ExtensionArray.from_storage(column.type, storage)))
    with pytest.raises(PipelineError, match=r"train-000000\.arrow: logvar has values that are no latents; .*dvc repro encode"):
        LatentDataset(folder, "train")


@pytest.mark.parametrize(("key", "value"), [("mean", [1.0, 2.0]), ("sum_variance", [1.0, 2.0, 3.0, 4.0]), ("count", 7)])
def test_moments_of_another_number_of_channels_or_images_are_refused(folder, key, value):
    edit_json(folder / "manifest.json", lambda tree: tree["splits"]["train"]["files"][0]["moments"].update({key: value}))
    with pytest.raises(PipelineError, match="its statistics are not those of the training latents"):
        LatentDataset(folder, "train").statistics("sample")


def test_every_key_of_the_manifest_that_is_missing_or_of_another_type_is_one_line(folder):
    def read():
        latents = LatentDataset(folder, "train")
        return latents.batch(range(len(latents))), latents.statistics("sample")

    assert survives(folder / "manifest.json", read)[1] > 40
