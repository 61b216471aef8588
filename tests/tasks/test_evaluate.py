"""The evaluate stage: the contract's numbers, each what it says it is, and refusal of what does not belong together."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluation.factors
from errors import PipelineError
from evaluation.extractors import build_extractor
from evaluation.factors import load_judge
from evaluation.fidelity import features_to_statistics, frechet_distance
from evaluation.pyramid import project, sliced_wasserstein
from evaluation.reference import evenly_spaced
from models.autoencoder import to_uint8
from stage import execute
from storage.decoders import load_decoder
from storage.examples import read_examples
from storage.files import read_json, write_json
from storage.frozen import load_frozen
from storage.latents import LatentDataset
from storage.legends import read_legend
from storage.shards import ShardDataset
from tasks.evaluate import STAGE, Viewing, latent_use
from tasks.reference import STAGE as REFERENCE
from tests.evaluation.faces import SIZE, faces
from tests.sealing import seal
from tests.storage.test_gaussian_latents import gaussians
from tests.storage.test_gaussian_latents import write as write_gaussian_latents
from tests.tasks.finished_run import NUM_CODES, RUN, small_params, write_faces, write_images, write_run, write_shards

PARAMS = small_params(num_images=24)
DISTANCES = ["fd_efficientnet_lite0", "kd_efficientnet_lite0"]
GAP = 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run that is ready to be evaluated."""
    root = tmp_path_factory.mktemp("run")
    write_shards(root)
    write_run(root)
    execute(REFERENCE, PARAMS, None, 0, root)
    return root


@pytest.fixture(scope="module")
def metrics(shared):
    execute(STAGE, PARAMS, "dae", 0, shared)
    return json.loads((shared / f"metrics/evaluate/{RUN}.json").read_text())


@pytest.fixture
def root(shared, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(shared, tmp_path / "copy")


def refused(root) -> str:
    with pytest.raises(PipelineError) as error:
        execute(STAGE, PARAMS, "dae", 0, root)
    assert "\n" not in str(error.value)
    return str(error.value)


def decoded(root, stage):
    """The validation images through one decoder, by hand."""
    frozen = load_frozen(root / f"artifacts/freeze/{RUN}")
    decoder = load_decoder(root / f"artifacts/{stage}/{RUN}", frozen.sha256)
    latents = LatentDataset(root / f"artifacts/encode/{RUN}", "validation", frozen.sha256).batch(range(24))
    with torch.inference_mode():
        return to_uint8(decoder(frozen.bottleneck.decode(latents))), latents["tokens"]


def tiles(path, number):
    """The images of a grid, row by row."""
    pixels = np.asarray(Image.open(path))
    columns = (pixels.shape[1] + GAP) // (SIZE + GAP)
    step = SIZE + GAP
    corners = [divmod(position, columns) for position in range(number)]
    return np.stack([pixels[row * step : row * step + SIZE, column * step : column * step + SIZE] for row, column in corners])


def test_it_has_the_contracts_sections_and_names(metrics, shared):
    reconstructions = {"reconstruction_stage1", "reconstruction_stage2", "stage2_gain"}
    perfect = {"perfect_prior_stage1", "perfect_prior_stage2"}
    others = {"latent", "frozen_sha256", "neighbours", "prior", "prior_gap", "protocol", "samples"}
    assert set(metrics) == {*others, *reconstructions, *perfect}
    for stage in ("stage1", "stage2"):
        assert {*DISTANCES, "psnr_db", "swd_laplacian"} <= metrics[f"reconstruction_{stage}"].keys()
        assert not {"fid", "kid", "precision", "recall", "factor_tv"} & metrics[f"reconstruction_{stage}"].keys()
    assert {*DISTANCES, "precision", "recall", "swd_laplacian"} <= metrics["samples"].keys()
    assert not {"fid", "kid", "inception_score", "psnr_db", "factor_tv"} & metrics["samples"].keys()
    assert sorted(metrics["prior_gap"]) == DISTANCES
    assert metrics["protocol"] == read_json(shared / "metrics/reference.json")["protocol"]
    assert metrics["prior"] == {"validation_nll_nats_per_token": 2.5}
    legend = read_legend(shared / f"artifacts/evaluate/{RUN}")
    named = {name.removeprefix("validation_") for section in metrics.keys() - {"protocol", "frozen_sha256"} for name in metrics[section]}
    assert named <= legend.keys() and legend["nll_nats_per_token"]["unit"] == "nats per token"


def test_cartoon_faces_are_held_to_the_law_they_are_drawn_by(tmp_path, monkeypatch):
    """The samples here are real faces, the reconstructions an untrained decoder's."""
    for name, value in (("NUM_STEPS", 60), ("BATCH_SIZE", 40), ("MIN_ACCURACY", 0.3)):
        monkeypatch.setattr(evaluation.factors, name, value)
    monkeypatch.setattr("tasks.reference.NUM_LAW_FACES", 500)
    write_faces(tmp_path, PARAMS)
    write_run(tmp_path)
    execute(REFERENCE, PARAMS, None, 0, tmp_path)
    made = execute(STAGE, PARAMS, "dae", 0, tmp_path)
    judge = load_judge(tmp_path / "artifacts/reference", torch.device("cpu"))
    assert made["samples"]["factor_tv"] == pytest.approx(judge.total_variation(judge.read(faces(70, 95)[evenly_spaced(25, 24)])), abs=0.05)
    for stage in ("stage1", "stage2"):
        images, _ = decoded(tmp_path, stage)
        assert made[f"reconstruction_{stage}"]["factor_tv"] == pytest.approx(judge.total_variation(judge.read(images)), abs=0.05)
        assert made["samples"]["factor_tv"] < made[f"reconstruction_{stage}"]["factor_tv"]


def test_faces_are_nearer_to_faces_than_an_untrained_decoders_images_are(metrics):
    for name in (*DISTANCES, "swd_laplacian"):
        assert metrics["samples"][name] < 0.5 * metrics["reconstruction_stage1"][name]


def test_the_samples_score_what_other_real_images_score(metrics, shared):
    """The samples here are faces, so they are about at the floor."""
    floor = read_json(shared / "metrics/reference.json")["floor"]
    assert metrics["samples"]["fd_efficientnet_lite0"] == pytest.approx(floor["fd_efficientnet_lite0"], rel=0.3)


def test_patches_are_compared_with_those_of_the_validation_images_of_the_reference(shared, tmp_path):
    """20 of 24, evenly spaced; neither the batches nor what was evaluated before matter."""
    root = shutil.copytree(shared, tmp_path / "copy")
    params = small_params(num_images=20)
    execute(REFERENCE, params, None, 0, root)
    result = execute(STAGE, params, "dae", 0, root)
    chosen = evenly_spaced(24, 20)
    real = project([faces(0, 24)[chosen]], 20)
    samples = project([faces(70, 95)[evenly_spaced(25, 20)]], 20, real)
    assert result["samples"]["swd_laplacian"] == pytest.approx(sliced_wasserstein(samples, real), rel=1e-4)
    for stage in ("stage1", "stage2"):
        expected = sliced_wasserstein(project([decoded(root, stage)[0][chosen]], 20, real), real)
        assert result[f"reconstruction_{stage}"]["swd_laplacian"] == pytest.approx(expected, rel=0.01)  # a byte may round otherwise


def features(images):
    return build_extractor("efficientnet-lite0", None, PARAMS.evaluation.input_size, torch.device("cpu"))(images)["features"]


def prior_gap_by_hand(root):
    """Fréchet distance of the samples to what the second decoder makes of the validation images."""
    samples = features(faces(70, 95)[evenly_spaced(25, 24)])
    return frechet_distance(features_to_statistics(samples), features_to_statistics(features(decoded(root, "stage2")[0])))


def test_the_prior_gap_is_the_distance_of_samples_to_the_second_decoders_reconstructions(metrics, shared):
    assert metrics["prior_gap"]["fd_efficientnet_lite0"] == pytest.approx(prior_gap_by_hand(shared), rel=1e-2)
    for name in DISTANCES:  # an untrained decoder's images are far from the samples, which are faces
        assert metrics["prior_gap"][name] > 2 * metrics["samples"][name]


def test_a_prior_that_gives_the_very_latents_costs_nothing(root):
    """Samples are what the second decoder makes of the validation images: as far from real images, and at no distance to them."""
    sha256 = read_json(root / f"artifacts/sample/{RUN}/manifest.json")["frozen_sha256"]
    shutil.rmtree(root / f"artifacts/sample/{RUN}")
    write_images(root / f"artifacts/sample/{RUN}", {"samples": [decoded(root, "stage2")[0]]}, frozen_sha256=sha256)
    result = execute(STAGE, PARAMS, "dae", 0, seal(root))
    distance = DISTANCES[0]
    assert result["samples"][distance] == pytest.approx(result["reconstruction_stage2"][distance], rel=1e-2)
    assert abs(result["prior_gap"][distance]) < 1e-2 * result["samples"][distance]


def test_psnr_is_the_mean_over_images_on_bytes(metrics, shared):
    for stage in ("stage1", "stage2"):
        images, _ = decoded(shared, stage)
        errors = ((images.numpy().astype(float) - faces(0, 24).numpy().astype(float)) ** 2).mean((1, 2, 3))
        assert metrics[f"reconstruction_{stage}"]["psnr_db"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-3)


def test_what_stage2_takes_off_is_the_difference_of_the_distances(metrics, shared):
    gain = metrics["stage2_gain"]
    distances = [metrics[f"reconstruction_{stage}"]["fd_efficientnet_lite0"] for stage in ("stage1", "stage2")]
    assert gain["frechet_gain"] == distances[0] - distances[1] != 0 < gain["frechet_gain_standard_error"]


def test_codebook_use_counts_the_validation_tokens(metrics, shared):
    _, tokens = decoded(shared, "stage1")
    shares = np.bincount(tokens.flatten().numpy(), minlength=NUM_CODES) / tokens.numel()
    used = shares[shares > 0]
    assert metrics["latent"]["codebook_usage"] == pytest.approx(len(used) / NUM_CODES)
    assert metrics["latent"]["codebook_perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()))


def test_the_grids_show_the_same_images_pixel_for_pixel(metrics, shared):
    folder, shown = shared / f"artifacts/evaluate/{RUN}", list(range(0, 24, 4))
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.png", "examples.json", "legend.json", "neighbours.png",
        "real.png", "reconstruction_stage1.png", "reconstruction_stage2.png", "samples.png", "seal.json", "worst.png",
    ]  # fmt: skip
    expected = {"real": faces(0, 24), "reconstruction_stage1": decoded(shared, "stage1")[0]}
    for name, images in expected.items():
        difference = tiles(folder / f"{name}.png", 6).astype(int) - images[shown].permute(0, 2, 3, 1).numpy().astype(int)
        assert np.abs(difference).max() <= (1 if name != "real" else 0)  # decoded in other batches: may round to the next byte


def test_single_images_are_told_of_by_what_was_measured(metrics, shared):
    told = read_examples(shared / f"artifacts/evaluate/{RUN}")
    for stage in ("stage1", "stage2"):
        assert np.mean(told["psnr_db"][stage]) == pytest.approx(metrics[f"reconstruction_{stage}"]["psnr_db"], abs=1e-3)
    assert told["worst"][0]["stage2"] == min(told["psnr_db"]["stage2"]) <= max(told["psnr_db"]["stage2"]) == told["best"][0]["stage2"]
    assert metrics["neighbours"] == {"near_training_share": told["nearest"]["share"]}
    assert told["nearest"]["share"] <= told["nearest"]["worry_above"]  # the samples are fresh faces
    assert told["tile"] == {"size": SIZE, "gap": GAP} and not told["has_interpolations"]
    distances = torch.cdist(features(faces(70, 95)[evenly_spaced(25, 24)]), features(faces(40, 64))).min(1).values
    assert told["nearest"]["samples"] == pytest.approx(distances.tolist(), rel=1e-2)
    distances = torch.cdist(features(decoded(shared, "stage2")[0]), features(faces(40, 64))).min(1).values
    assert told["nearest"]["decoded"] == pytest.approx(distances.tolist(), rel=1e-2)


def test_samples_that_are_training_images_are_found(root):
    """Half of them; the rest are fresh faces. What held-out images are decoded to is no face, and not what samples are held against."""
    sha256 = read_json(root / f"artifacts/sample/{RUN}/manifest.json")["frozen_sha256"]
    shutil.rmtree(root / f"artifacts/sample/{RUN}")
    write_images(root / f"artifacts/sample/{RUN}", {"samples": [faces(70, 82), faces(40, 52)]}, frozen_sha256=sha256)
    execute(STAGE, PARAMS, "dae", 0, seal(root))
    nearest = read_examples(root / f"artifacts/evaluate/{RUN}")["nearest"]
    assert max(nearest["samples"][12:]) < 1e-2 < min(nearest["samples"][:12])
    assert nearest["control"] == "real" and nearest["share"] >= 0.5 > nearest["worry_above"]
    keys = ShardDataset(root / "artifacts/shards", "train").keys
    assert {shown["training_keys"][0] for shown in nearest["shown"]} <= set(keys[:12])


def test_without_a_second_stage_both_decoders_score_the_same(tmp_path, monkeypatch):
    write_shards(tmp_path)
    write_run(tmp_path, second_decoder_seed=1)
    execute(REFERENCE, PARAMS, None, 0, tmp_path)
    decoders, reconstruct_once = [], Viewing.reconstruct

    def reconstruct(viewing, name, *arguments):
        decoders.append(name)
        return reconstruct_once(viewing, name, *arguments)

    monkeypatch.setattr(Viewing, "reconstruct", reconstruct)
    result = execute(STAGE, PARAMS, "dae", 0, tmp_path)
    assert decoders == ["reconstruction_stage1"]  # nothing is computed twice
    assert result["reconstruction_stage2"] == result["reconstruction_stage1"]
    assert result["prior_gap"]["fd_efficientnet_lite0"] == pytest.approx(prior_gap_by_hand(tmp_path), rel=1e-2)
    grids = [tmp_path / f"artifacts/evaluate/{RUN}/reconstruction_{stage}.png" for stage in ("stage1", "stage2")]
    assert grids[0].read_bytes() == grids[1].read_bytes()


OTHER = "f" * 64


def change(path, key, value):
    tree = read_json(path)
    tree[key] = value
    write_json(path, tree)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (f"artifacts/encode/{RUN}/manifest.json", "encode"),
        (f"artifacts/stage1/{RUN}/decoder.json", "stage1"),
        (f"artifacts/stage2/{RUN}/decoder.json", "stage2"),
        (f"artifacts/sample/{RUN}/manifest.json", "sample"),
        (f"artifacts/prior/{RUN}/prior.json", "prior"),
        (f"metrics/prior/{RUN}.json", "prior"),
    ],
)
def test_what_belongs_to_another_frozen_encoder_is_refused_by_both_hashes(path, named, root):
    ours = read_json(root / path)["frozen_sha256"]
    change(root / path, "frozen_sha256", OTHER)
    message = refused(seal(root))
    for part in (named, OTHER[:16], ours[:16]):
        assert part in message


def test_a_reference_of_other_shards_is_refused_by_both_hashes(root):
    manifest = read_json(root / "artifacts/reference/manifest.json")
    change(root / "artifacts/reference/manifest.json", "shards_sha256", OTHER)
    message = refused(seal(root))
    for part in (OTHER[:16], manifest["shards_sha256"][:16], "dvc repro reference"):
        assert part in message


def test_latents_of_other_images_are_refused(root):
    other = {"validation": [faces(0, 23)], "train": [faces(40, 64)]}
    shutil.rmtree(root / "artifacts/shards")
    write_images(root / "artifacts/shards", other)
    assert "its validation images are not those of" in refused(seal(root))


def test_too_few_samples_is_one_line(root):
    manifest = read_json(root / f"artifacts/sample/{RUN}/manifest.json")
    write_images(root / f"artifacts/sample/{RUN}", {"samples": [faces(70, 80)]}, frozen_sha256=manifest["frozen_sha256"])
    message = refused(seal(root))
    for part in ("evaluation.num_images is 24", "10 sampled", "sample.num_images"):
        assert part in message


def test_use_of_a_continuous_latent_is_that_of_all_validation_images(tmp_path):
    """Against numpy over everything at once; the deviations are those of samples of the training images' latents."""
    write_gaussian_latents(tmp_path)
    stored = {name: values.half().double().numpy() for name, values in gaussians("validation-000000", 1).items()}
    mean, variance = stored["mean"], np.exp(stored["logvar"])
    use = latent_use(LatentDataset(tmp_path, "validation"))
    assert use["kl_nats_per_image"] == pytest.approx((0.5 * (mean**2 + variance - 1 - np.log(variance))).sum((1, 2, 3)).mean())
    noise, between = variance.mean((0, 2, 3)), mean.var((0, 2, 3))
    assert use["noise_share"] == pytest.approx((noise / (noise + between)).mean())
    std = LatentDataset(tmp_path, "train").statistics("sample")[1]
    assert (use["channel_std_min"], use["channel_std_max"]) == (std.min().item(), std.max().item())
