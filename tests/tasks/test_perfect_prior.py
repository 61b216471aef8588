"""What a perfect prior would score: decoded latents of the training images that give the floor, drawn as the prior is trained on them."""

import math

import pytest
import torch
from torch import nn

from errors import PipelineError
from evaluation.reference import evenly_spaced
from models.autoencoder import from_uint8
from models.priors import build_prior, config_of
from stage import execute
from storage.files import read_json
from storage.frozen import load_frozen
from storage.latents import LatentDataset
from tasks.evaluate import STAGE, PerfectPrior, Viewing
from tasks.reference import STAGE as REFERENCE
from tests.evaluation.faces import SIZE, faces
from tests.sealing import seal
from tests.tasks.finished_run import RUN, SMALL, small_params, write_run, write_shards

PARAMS = small_params()  # 20 of 24 images
KL = {"kind": "kl", "latent_channels": 2, "kl_weight": 1e-6}
FD = "fd_efficientnet_lite0"
NOISE_STD = 0.04  # of pixels that go from -1 to 1: five bytes


def dit(latent: str) -> nn.Module:
    config = {"latent_channels": 2, "patch_size": 1, "time_distribution": "uniform", "time_shift": 1.0, "latent": latent}
    prior = build_prior({"kind": "dit", **SMALL, **config})
    prior.set_statistics(torch.zeros(2), torch.ones(2))
    return prior


def pixels_as_latents(images: torch.Tensor) -> dict[str, torch.Tensor]:
    mean = from_uint8(images)
    return {"mean": mean, "logvar": torch.full_like(mean, 2 * math.log(NOISE_STD))}


class Lossless(nn.Module):
    """A decoder whose latents are the pixels themselves."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def evaluated(root, monkeypatch, latent: str) -> tuple[dict, dict]:
    """Metrics of a run whose second decoder is lossless, and what real training images score."""
    write_shards(root)
    write_run(root, bottleneck=KL, prior=dit(latent), encode=pixels_as_latents)
    monkeypatch.setattr("tasks.evaluate.load_decoder", lambda folder, sha256: Lossless())
    execute(REFERENCE, PARAMS, None, 0, root)
    return execute(STAGE, PARAMS, "dae", 0, root), read_json(root / "metrics/reference.json")["floor"]


def test_a_lossless_decoder_scores_exactly_the_floor_with_a_prior_of_means(tmp_path, monkeypatch):
    """Its reconstructions are at 0, as their originals are the reference: the two are not to be compared."""
    metrics, floor = evaluated(tmp_path, monkeypatch, "mean")
    for stage in ("stage1", "stage2"):
        assert metrics[f"perfect_prior_{stage}"] == pytest.approx(floor, rel=1e-9)
        assert metrics[f"reconstruction_{stage}"][FD] < 1e-3 * floor[FD]


def test_a_prior_of_samples_draws_the_encoders_noise_too(tmp_path, monkeypatch):
    metrics, floor = evaluated(tmp_path, monkeypatch, "sample")
    for name in (FD, "swd_laplacian"):
        assert metrics["perfect_prior_stage2"][name] > 1.01 * floor[name]
    frozen = load_frozen(tmp_path / f"artifacts/freeze/{RUN}")
    perfect = PerfectPrior(Lossless(), frozen, LatentDataset(tmp_path / f"artifacts/encode/{RUN}", "train"), config_of(dit("sample")))
    images = perfect.images(range(24))
    noise = (images.float() - faces(40, 64).float())[(faces(40, 64) > 20) & (faces(40, 64) < 235)]  # where no byte is cut off
    assert noise.std().item() == pytest.approx(127.5 * NOISE_STD, rel=0.02) and abs(noise.mean().item()) < 0.1
    assert torch.equal(torch.cat([perfect.images(range(7)), perfect.images(range(7, 24))]), images)


def test_tokens_are_decoded_by_each_stages_decoder_and_one_decoder_once(tmp_path, monkeypatch):
    write_shards(tmp_path)
    write_run(tmp_path)
    execute(REFERENCE, PARAMS, None, 0, tmp_path)
    shown, look_once = [], Viewing.look_at

    def look_at(viewing, read, indices):
        if isinstance(getattr(read, "__self__", None), PerfectPrior):
            shown.append((indices, read(indices)))
        return look_once(viewing, read, indices)

    monkeypatch.setattr(Viewing, "look_at", look_at)
    metrics = execute(STAGE, PARAMS, "dae", 0, tmp_path)
    assert [indices for indices, _ in shown] == [evenly_spaced(24, 20)] * 2 and not torch.equal(shown[0][1], shown[1][1])
    assert shown[0][1].shape == (20, 3, SIZE, SIZE)
    assert metrics["perfect_prior_stage1"] != metrics["perfect_prior_stage2"]
    assert metrics["perfect_prior_stage1"].keys() == metrics["perfect_prior_stage2"].keys() == metrics["samples"].keys()
    once = tmp_path / "once"
    write_shards(once)
    write_run(once, second_decoder_seed=1)
    execute(REFERENCE, PARAMS, None, 0, once)
    shown.clear()
    metrics = execute(STAGE, PARAMS, "dae", 0, once)
    assert len(shown) == 1 and metrics["perfect_prior_stage1"] == metrics["perfect_prior_stage2"]


def test_latents_of_other_training_images_are_refused(tmp_path):
    write_shards(tmp_path)
    write_run(tmp_path)
    write_shards(tmp_path, faces(39, 63))
    execute(REFERENCE, PARAMS, None, 0, seal(tmp_path))
    with pytest.raises(PipelineError, match=r"its training images are not those of .*dvc repro encode"):
        execute(STAGE, PARAMS, "dae", 0, tmp_path)
