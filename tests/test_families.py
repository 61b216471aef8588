"""Every pair of bottleneck and prior that makes sense, from shards to report, in process and in small."""

import importlib
import json
import re
import shutil

import pytest

from errors import PipelineError
from models.bottleneck import DiagonalGaussian
from params import Params
from stage import execute
from storage.frozen import load_frozen
from storage.latents import LatentDataset
from storage.priors import load_prior
from storage.shards import ShardDataset
from tasks.sample import sampler_settings
from tests.families import small_params, write_source

ONCE = ("shards", "reference")
AUTOENCODER = ("stage1", "freeze", "encode", "stage2")
GENERATOR = ("prior", "sample", "evaluate")
RUN = "dae-0"
pytestmark = pytest.mark.timeout(300)


def run_stages(names, params: Params, root) -> dict[str, dict]:
    """Metrics of these stages, run in order."""
    stages = {name: importlib.import_module(f"tasks.{name}").STAGE for name in names}
    return {name: execute(stage, params, "dae" if stage.per_arm else None, 0, root) for name, stage in stages.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Shards and the reference, which all pairs share."""
    root = tmp_path_factory.mktemp("families")
    write_source(root)
    run_stages(ONCE, small_params("vq", "transformer", "autoregressive"), root)
    return root


@pytest.fixture(scope="module")
def encoded(prepared, tmp_path_factory):
    """``encoded(bottleneck)``: a folder in which a bottleneck's autoencoder is trained; each is trained once."""
    made = {}

    def prepare(bottleneck: str, *pair):
        if bottleneck not in made:
            made[bottleneck] = shutil.copytree(prepared, tmp_path_factory.mktemp(bottleneck) / "root")
            run_stages(AUTOENCODER, small_params(bottleneck, *pair), made[bottleneck])
        return made[bottleneck]

    return prepare


def words(root) -> str:
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<aside.*?</aside>", "", (root / "report/index.html").read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def check_report(root, params: Params, metrics: dict, prior_metric: str) -> str:
    """What every family's evaluation and report must hold; returns the report's text."""
    assert set(metrics["evaluate"]["prior"]) == {f"validation_{prior_metric}"}
    assert metrics["evaluate"]["prior"][f"validation_{prior_metric}"] == metrics["prior"][f"validation_{prior_metric}"]
    header = (root / f"curves/prior/{RUN}.csv").read_text().splitlines()[0].split(",")
    assert header[-1] == prior_metric and f"validation_{prior_metric}" in header  # where `dvc plots` looks for it
    manifest = json.loads((root / f"artifacts/sample/{RUN}/manifest.json").read_text())
    assert manifest["sampling"] == sampler_settings(params.sample) and manifest["sampling"]["sampler"] == params.sample.sampler
    run_stages(["report"], params, root)
    return words(root)


@pytest.mark.parametrize(
    ("bottleneck", "prior", "metric"),
    [
        ("vq", "maskgit", "masked_nll_nats_per_token"),
        ("fsq", "transformer", "nll_nats_per_token"),
        ("fsq", "maskgit", "masked_nll_nats_per_token"),
    ],
)
def test_discrete_pairs_run_from_shards_to_report(encoded, bottleneck, prior, metric):
    pair = prior, "maskgit" if prior == "maskgit" else "autoregressive"
    params = small_params(bottleneck, *pair)
    root = encoded(bottleneck, *pair)
    metrics = run_stages(GENERATOR, params, root)
    text = check_report(root, params, metrics, metric)
    assert 0 < metrics["evaluate"]["latent"]["codebook_perplexity"] <= 16
    assert "Between two latents" not in text and not (root / f"artifacts/evaluate/{RUN}/interpolations.png").exists()
    assert "Codebook perplexity" in text and "Flow-matching" not in text and "Channel deviation" not in text
    assert ("Masked NLL" in text) == (prior == "maskgit")


KL = {"arms": {"dae": {"stage2": {"latent_noise": {"kind": "added", "strength": 0.2}}}}, "encode": {"horizontal_flip": True}}


@pytest.mark.parametrize("num_ray_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_continuous_pair_runs_from_shards_to_report(encoded, num_ray_workers):
    params = small_params("kl", "dit", "heun", KL | {"prior": {"training": {"num_ray_workers": num_ray_workers}}})
    root = encoded("kl", "dit", "heun", KL)
    metrics = run_stages(GENERATOR, params, root)
    text = check_report(root, params, metrics, "flow_matching_loss")
    assert 0 < metrics["evaluate"]["latent"]["noise_share"] < 1 and metrics["evaluate"]["latent"]["kl_nats_per_image"] > 0
    assert "Between two latents" in text and (root / f"artifacts/evaluate/{RUN}/interpolations.png").is_file()
    results = text.partition("Image quality")[2].rpartition("Stages")[0]
    assert "odebook" not in results and "NLL" not in results and "likelihoods" not in results
    assert all(name in results for name in ("Information (KL)", "Flow-matching loss", "Encoder noise, mean deviation"))


@pytest.mark.parametrize("sampler", ["euler", "stochastic"])
def test_other_samplers_draw_from_the_same_prior(encoded, sampler):
    """``sample.sampler`` is no parameter of the prior: another one needs the sample stage alone."""
    root = encoded("kl", "dit", "heun", KL)
    if not (root / f"artifacts/prior/{RUN}").exists():
        run_stages(["prior"], small_params("kl", "dit", "heun", KL), root)
    made = []
    for batch_size in (20, 7):
        changes = {"sample": {"batch_size": batch_size, "images_per_shard": 2 * batch_size}}
        run_stages(["sample"], small_params("kl", "dit", sampler, changes), root)
        made.append(ShardDataset(root / f"artifacts/sample/{RUN}", "samples").images(range(60)).int())
    assert (made[0] - made[1]).abs().max() <= 1  # an image depends on its index and not on its batch, up to rounding


def test_no_scale_is_forgotten_or_applied_twice(encoded):
    """From the encoder through the prior's normalisation and back, latents decode to what they did before."""
    root = encoded("kl", "dit", "heun", KL)
    if not (root / f"artifacts/prior/{RUN}").exists():
        run_stages(["prior"], small_params("kl", "dit", "heun", KL), root)
    frozen = load_frozen(root / f"artifacts/freeze/{RUN}")
    prior, _ = load_prior(root / f"artifacts/prior/{RUN}", frozen.sha256)
    latents = LatentDataset(root / f"artifacts/encode/{RUN}", "train", frozen.sha256)
    mean = latents.batch(range(len(latents)))["mean"]
    normal = prior.normalize(mean + (0.5 * latents.batch(range(len(latents)))["logvar"]).exp() * mean.new_empty(mean.shape).normal_())
    assert normal.mean((0, 2, 3)).abs().max() < 0.1 and (normal.std((0, 2, 3)) - 1).abs().max() < 0.1
    restored = prior.denormalize(prior.normalize(mean))
    assert isinstance(frozen.bottleneck, DiagonalGaussian)
    assert (frozen.bottleneck.decode({"mean": restored}) - frozen.bottleneck.decode({"mean": mean})).abs().max() < 1e-5
    images = ShardDataset(root / "artifacts/shards", "train").images(range(8))
    assert (frozen.encode(images)["mean"] - mean[:8]).abs().max() < 4e-3  # stored in half precision


def test_a_prior_of_another_kind_of_latent_is_refused(encoded, tmp_path):
    root = shutil.copytree(encoded("kl", "dit", "heun", KL), tmp_path / "copy")
    with pytest.raises(PipelineError, match=r"prior.kind transformer models tokens .*run dvc repro encode"):
        run_stages(["prior"], small_params("vq", "transformer", "autoregressive"), root)
