"""Stage 1 and stage 2: who receives gradients when, what is shared between arms, and that no encoder runs in stage 2."""

from types import SimpleNamespace

import pytest
import torch

from errors import PipelineError
from models.autoencoder import Encoder
from storage.decoders import save_decoder
from storage.frozen import load_encoder
from storage.latents import LatentDataset
from storage.shards import ShardDataset
from tests.training.tiny import tiny_params, write_tiny_latents, write_tiny_shards
from training.autoencoder import LatentExamples, Stage1Objective, Stage2Objective
from training.launch import train
from training.linear_map import GAIN_OVER_LINEAR, GAIN_OVER_MEAN
from training.schedule import Pace

CPU = torch.device("cpu")
VQ, KL = ("vq", "transformer", "autoregressive"), ("kl", "dit", "heun")


@pytest.fixture
def inputs(tmp_path):
    return SimpleNamespace(shards=write_tiny_shards(tmp_path / "shards"))


def last_steps(number: int, of: int, head_start: int) -> dict:
    """Changes of the parameters: so many adversarial steps in stage 1, the last ones."""
    stage1 = {"arms__dae__stage1__num_steps": of, "arms__dae__stage1__num_adversarial_steps": number}
    return stage1 | {"reconstruction_loss__discriminator_head_start": head_start}


def gradients(objective, step) -> dict[str, bool]:
    """Which modules get a gradient from a step."""
    objective.loss(objective.examples.batch([0, 1, 2, 3]), step)[0].backward()
    return {name: any(p.grad is not None and p.grad.any() for p in module.parameters()) for name, module in objective.modules.items()}


def test_the_discriminator_learns_before_it_counts(inputs):
    params = tiny_params(**last_steps(2, of=10, head_start=3))
    for step, learns, counts in ((4, False, False), (5, True, False), (8, True, True)):
        objective = Stage1Objective(params, inputs, CPU)
        assert gradients(objective, step) == {"autoencoder": True, "discriminator": learns}
        assert ("adversarial" in objective.loss(objective.examples.batch([0, 1]), step)[1]) is counts


def test_the_adversarial_term_changes_the_autoencoders_gradient_but_not_the_discriminators(inputs):
    found = {}
    for number in (10, 1):
        objective = Stage1Objective(tiny_params(**last_steps(number, of=10, head_start=10 - number)), inputs, CPU)
        assert all(gradients(objective, 0).values())
        found[number] = {name: torch.cat([p.grad.flatten() for p in m.parameters()]) for name, m in objective.modules.items()}
    assert torch.allclose(found[10]["discriminator"], found[1]["discriminator"], atol=1e-6)
    assert not torch.allclose(found[10]["autoencoder"], found[1]["autoencoder"], atol=1e-6)


def test_without_adversarial_steps_there_is_no_discriminator(inputs):
    objective = Stage1Objective(tiny_params(**last_steps(0, of=10, head_start=3)), inputs, CPU)
    assert set(objective.modules) == {"autoencoder"}
    assert set(objective.loss(objective.examples.batch([0, 1]), 9)[1]) >= {"pixel"}


def test_a_stage_has_one_phase_without_and_three_with_a_discriminator(inputs):
    objective = Stage1Objective(tiny_params(**last_steps(2, of=10, head_start=3)), inputs, CPU)
    assert objective.loss_terms.phases(10) == [(0, 5), (5, 3), (8, 2)]
    objective = Stage1Objective(tiny_params(**last_steps(0, of=10, head_start=3)), inputs, CPU)
    assert objective.loss_terms.phases(10) == [(0, 10), (10, 0), (10, 0)]


def test_an_arms_own_bottleneck_is_built(inputs):
    objective = Stage1Objective(tiny_params("compressed"), inputs, CPU)
    assert objective.modules["autoencoder"]["bottleneck"].num_codes == objective.bottleneck_config["num_codes"] == 128


def test_arms_start_from_the_same_encoder_and_differ_in_the_decoder(inputs):
    baseline, dae = (Stage1Objective(tiny_params(arm), inputs, CPU).modules["autoencoder"] for arm in ("baseline", "dae"))
    assert torch.equal(baseline["encoder"].conv_in.weight, dae["encoder"].conv_in.weight)
    assert torch.equal(baseline["bottleneck"].codebook, dae["bottleneck"].codebook)
    assert dae["decoder"].conv_out.in_channels == baseline["decoder"].conv_out.in_channels // 2


def test_horizontal_flips_mirror_about_half_of_the_images(inputs, monkeypatch):
    objective = Stage1Objective(tiny_params(stage1__horizontal_flip=True), inputs, CPU)
    seen = []
    objective.modules["autoencoder"]["encoder"].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    batch = objective.examples.batch(list(range(24)))
    torch.manual_seed(0)
    objective.loss(batch, 0)
    original = batch["images"].float() / 127.5 - 1
    mirrored = [torch.allclose(a, b.flip(-1)) for a, b in zip(seen[0], original, strict=True)]
    kept = [torch.allclose(a, b) for a, b in zip(seen[0], original, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True)) and 4 < sum(mirrored) < 20


def test_stage1_learns_and_repeats_to_the_same_bits(tmp_path, inputs):
    params = tiny_params(runtime__checkpoint_every_steps=4, runtime__log_every_steps=1, stage1__validate_every_steps=4)

    def run(folder, num_steps):
        return train(Stage1Objective, params, inputs, params.stage1, num_steps, tmp_path / folder, "test")

    whole = run("whole", 40)
    rows = whole.progress.rows
    assert rows[-1]["pixel"] < rows[0]["pixel"]
    assert {"validation_psnr_db", "validation_codebook_usage", "commitment"} <= set(rows[-1])
    again = run("again", 40)
    state, other = (t.load_selected("autoencoder").state_dict() for t in (whole, again))
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("start", ["fresh", "stage1"])
def test_stage2_runs_no_encoder_and_leaves_the_codebook_alone(tmp_path, monkeypatch, start):
    params = tiny_params(
        arms__dae__stage1__channels_multiplier=1.0,
        arms__dae__stage2__start=start,
        arms__dae__stage2__num_steps=6,
        arms__dae__stage2__num_adversarial_steps=3,
        reconstruction_loss__discriminator_head_start=1,
    )
    inputs = write_tiny_latents(tmp_path, params)
    if start == "stage1":
        stage1 = Stage1Objective(params, inputs, CPU)
        sha256 = load_encoder(inputs.freeze).sha256
        save_decoder(inputs.stage1, stage1.config, stage1.modules["autoencoder"]["decoder"], sha256)
    objective = Stage2Objective(params, inputs, CPU)

    def refuse(self, images):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(Encoder, "forward", refuse)
    codebook = objective.bottleneck.codebook.clone()
    assert gradients(objective, 5) == {"decoder": True, "discriminator": True}
    assert objective.bottleneck.codebook.grad is None and torch.equal(objective.bottleneck.codebook, codebook)
    assert objective.validate({"decoder": objective.modules["decoder"]})["validation_psnr_db"] > 0


def test_latents_of_other_shards_are_refused(tmp_path):
    params = tiny_params()
    inputs = write_tiny_latents(tmp_path, params)
    other = write_tiny_shards(tmp_path / "other", num_images=20)
    with pytest.raises(PipelineError, match="made from other image shards"):
        LatentExamples(ShardDataset(other, "train"), LatentDataset(inputs.encode, "train"))


def test_stage1_trains_a_gaussian_by_its_divergence_and_reports_no_codes(inputs):
    objective = Stage1Objective(tiny_params(family=KL, bottleneck__kl_weight=1.0, **last_steps(2, of=10, head_start=3)), inputs, CPU)
    batch = objective.examples.batch([0, 1, 2, 3])
    _, metrics = objective.loss(batch, 0)
    assert metrics["kl_nats_per_image"] > 0 and not any(name.startswith("codebook") for name in metrics)
    assert all(gradients(objective, 9).values())
    assert set(objective.validate(objective.modules)) == {
        f"validation_{name}" for name in ("psnr_db", GAIN_OVER_MEAN.name, GAIN_OVER_LINEAR.name)
    }


NOISES = [{"kind": kind, "strength": 0.5} for kind in ("interpolated", "added", "swapped")]


@pytest.mark.parametrize(("family", "noise"), [*((VQ, noise) for noise in NOISES), (KL, NOISES[0]), (KL, NOISES[1])])
def test_latent_noise_of_stage1_is_there_in_training_and_not_in_validation(inputs, family, noise, monkeypatch):
    without, noisy = (Stage1Objective(tiny_params(family=family, arms__dae__stage1__latent_noise=n), inputs, CPU) for n in (None, noise))
    batch = without.examples.batch([0, 1, 2, 3])
    losses = []
    for objective in (without, noisy):
        torch.manual_seed(0)
        losses.append(objective.loss({**batch}, 0)[1]["pixel"].item())
    assert losses[0] != losses[1]
    validated = [objective.validate(objective.modules) for objective in (without, noisy)]
    assert validated[0] == validated[1]
    monkeypatch.setattr("training.autoencoder.disturb", None)
    without.loss({**batch}, 0)  # an arm without it draws no numbers for it


def test_a_weak_decoder_leaves_the_gaussian_encoder_as_wide_as_the_baselines(inputs):
    baseline, dae = (Stage1Objective(tiny_params(arm, KL), inputs, CPU) for arm in ("baseline", "dae"))
    assert baseline.config.encoder_channels_out == dae.config.encoder_channels_out == 2 * dae.config.latent_channels == 8
    shapes = [{name: p.shape for name, p in o.modules["autoencoder"]["encoder"].named_parameters()} for o in (baseline, dae)]
    assert shapes[0] == shapes[1]


def test_stage2_sees_samples_of_the_latents_as_stage1_did():
    mean, logvar = torch.zeros(4000, 4, 2, 2), torch.full((4000, 4, 2, 2), -4.0)
    torch.manual_seed(0)
    assert torch.allclose(Stage2Objective._draw(mean, logvar).std((0, 2, 3)), torch.full((4,), torch.e**-2), rtol=0.03)


@pytest.mark.parametrize(("family", "noise"), [(KL, NOISES[0]), (KL, NOISES[1]), (VQ, NOISES[1]), (VQ, NOISES[2])])
def test_latent_noise_of_stage2_is_there_in_training_and_not_in_validation(tmp_path, family, noise):
    inputs = write_tiny_latents(tmp_path, tiny_params(family=family))
    arms = [tiny_params(family=family, arms__dae__stage2__latent_noise=n) for n in (None, noise)]
    without, noisy = (Stage2Objective(params, inputs, CPU) for params in arms)
    seen = []
    for objective in (without, noisy):
        objective.modules["decoder"].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
        torch.manual_seed(0)
        objective.loss(objective.examples.batch(list(range(24))), 0)
    assert seen[0].shape == seen[1].shape and not torch.allclose(*seen, atol=0.01)
    if noise["kind"] == "swapped":
        swapped = (seen[0] - seen[1]).abs().amax(1) > 1e-5  # (B, h, w)
        assert abs(swapped.float().mean() - 0.25) < 0.1  # a half at most, drawn for each image
    validated = [objective.validate({"decoder": objective.modules["decoder"]}) for objective in (without, noisy)]
    assert validated[0] == validated[1]


def test_a_continued_decoder_learns_at_its_factor_of_the_rate_and_its_new_discriminator_at_its_own(tmp_path):
    params = tiny_params("continued")
    inputs = write_tiny_latents(tmp_path, params)
    stage1 = Stage1Objective(params, inputs, CPU)
    save_decoder(inputs.stage1, stage1.config, stage1.modules["autoencoder"]["decoder"], load_encoder(inputs.freeze).sha256)
    assert Stage2Objective(params, inputs, CPU).paces == {"decoder": Pace(0.3), "discriminator": Pace(1.0, 0.0003, (0.5, 0.9))}
