"""Sample: how many images it draws. What they are is looked at in tests/export and by the pipeline's tests."""

import shutil

import pytest
import torch

from params import Params
from stage import execute
from storage.shards import ShardDataset
from tasks import sample
from tests.export import runs

SAMPLER = runs.FAMILIES["transformer"][2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_run(tmp_path_factory.mktemp("run") / "root", "transformer")


def params_of(batch_size: int, images_per_shard: int) -> Params:
    """For 10 images; a ValueError where the section refuses these sizes."""
    counts = {"num_images": 10, "batch_size": batch_size, "images_per_shard": images_per_shard}
    return runs._params("transformer", False, {**counts, "guidance_scale": 1.0, **SAMPLER})


@pytest.mark.parametrize("images_per_shard", [3, 4, 8, 9, 10, 1000])
@pytest.mark.parametrize("batch_size", [3, 4, 10, 11])
def test_every_batch_is_drawn_once_and_none_is_larger_than_what_is_wanted(root, tmp_path, monkeypatch, batch_size, images_per_shard):
    drawn = []

    def generate(prior, labels, random, settings):
        drawn.append(len(labels))
        return {"tokens": torch.zeros(len(labels), 4, 4, dtype=torch.int64)}

    monkeypatch.setattr(sample, "generate", generate)
    try:
        params = params_of(batch_size, images_per_shard)
    except ValueError:  # test_params.py has what it says
        assert batch_size > 10 or (images_per_shard < 10 and images_per_shard % batch_size)
        return
    project = shutil.copytree(root, tmp_path / "project")
    execute(sample.STAGE, params, "dae", runs.SEED, project)
    assert len(ShardDataset(project / f"artifacts/sample/{runs.RUN}", "samples")) == 10
    assert drawn == [batch_size] * -(-10 // batch_size)
