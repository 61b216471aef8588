"""What each bottleneck does to latents and gradients: vector quantisation, finite scalar quantisation, diagonal Gaussian."""

import math

import pytest
import torch
from torch.nn import functional as F

import kinds
from models.bottleneck import (
    KINDS,
    DiagonalGaussian,
    FiniteScalarQuantizer,
    VectorQuantizer,
    build_bottleneck,
    usage_metrics,
)
from models.metric import Metric
from tests import families

VQ_CONFIG = {"kind": "vq", "num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 7}
FSQ_CONFIG = {"kind": "fsq", "levels": [8, 5, 3, 2]}
KL_CONFIG = {"kind": "kl", "latent_channels": 3, "kl_weight": 0.5}


def quantizer(**changes) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(**{"num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 0, **changes})


def test_the_schema_the_models_and_these_tests_know_the_same_kinds():
    assert KINDS.keys() == kinds.BOTTLENECKS.keys() == families.BOTTLENECKS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_bottleneck_has_the_interface_that_stages_rely_on(kind):
    section = kinds.BOTTLENECKS[kind].model_validate(families.BOTTLENECKS[kind])
    torch.manual_seed(0)
    bottleneck = build_bottleneck(section.model_dump()).train()
    z = torch.randn(2, bottleneck.encoder_channels, 3, 3)
    output, latents = bottleneck(z), bottleneck.encode(z)
    assert output.z.shape == bottleneck.decode(latents).shape == (2, bottleneck.latent_channels, 3, 3)
    assert output.loss.shape == () and output.loss.isfinite()
    assert bottleneck.metrics and {type(metric) for metric in bottleneck.metrics} == {Metric}
    assert bottleneck.is_discrete == (section.LATENTS == kinds.TOKENS) == (output.tokens is not None)
    if bottleneck.is_discrete:
        swapped = bottleneck.swap_tokens(latents["tokens"], 1.0)
        for tokens in (latents["tokens"], swapped):
            assert tokens.shape == (2, 3, 3) and tokens.dtype == torch.int64 and 0 <= tokens.min() <= tokens.max() < bottleneck.num_codes
        assert not torch.equal(swapped, latents["tokens"])
    else:
        assert {name: values.shape for name, values in latents.items()} == dict.fromkeys(("mean", "logvar"), output.z.shape)


def test_each_position_gets_the_code_nearest_on_the_sphere():
    vq, z = quantizer().eval(), torch.randn(2, 4, 3, 3)
    codes = F.normalize(vq.codebook, dim=-1)
    distances = torch.cdist(F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4), codes)
    assert torch.equal(vq.encode(z)["tokens"].flatten(), distances.argmin(dim=1))


def test_decoding_tokens_gives_what_training_fed_the_decoder():
    vq, z = quantizer().eval(), torch.randn(2, 4, 3, 3)
    assert torch.allclose(vq.decode(vq.encode(z)), vq(z).z, atol=1e-6)


def test_gradient_passes_straight_through_to_the_encoder():
    vq, z = quantizer().eval(), torch.randn(2, 4, 3, 3, requires_grad=True)
    upstream = torch.randn(2, 4, 3, 3)
    through, direct = (torch.autograd.grad((output * upstream).sum(), z)[0] for output in (vq(z).z, F.normalize(z, dim=1)))
    assert torch.allclose(through, direct, atol=1e-6)


def test_commitment_weight_scales_the_encoder_side_and_not_the_codebook_side():
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    gradients = {}
    for weight in (0.25, 1.0):
        vq = quantizer(commitment_weight=weight).eval()
        gradients[weight] = torch.autograd.grad(vq(z).loss, [z, vq.codebook])
    assert torch.allclose(gradients[1.0][0], 4 * gradients[0.25][0], atol=1e-6)
    assert torch.equal(gradients[1.0][1], gradients[0.25][1])


def test_scale_of_the_encoder_output_does_not_matter():
    vq, z = quantizer().eval(), torch.randn(2, 4, 3, 3)
    assert torch.equal(vq.encode(z)["tokens"], vq.encode(100 * z)["tokens"])


def train_step(vq, *parts):
    """One training step whose batch comes in parts."""
    outputs = [vq(part) for part in parts]
    vq.end_step()
    return outputs[-1]


def test_a_dead_code_is_moved_onto_an_encoder_output_and_then_used():
    vq = quantizer(revive_after_steps=3).train()
    z = F.normalize(torch.randn(1, 4, 1, 1), dim=1).expand(2, 4, 3, 3) + 0.01 * torch.randn(2, 4, 3, 3)
    usage = [train_step(vq, z).metrics["codebook_usage"].item() for _ in range(5)]
    assert max(usage[:3]) < 0.2
    assert usage[4] > 0.4  # after three unused steps, the rest stand on encoder outputs and win positions
    similarity = F.normalize(vq.codebook, dim=-1) @ F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4).T
    assert (similarity.max(dim=1).values > 0.99).sum() > 10


def test_nothing_is_revived_when_turned_off_or_in_evaluation():
    for vq in (quantizer(revive_after_steps=0).train(), quantizer(revive_after_steps=1).eval()):
        before = vq.codebook.clone()
        for _ in range(5):
            train_step(vq, torch.ones(1, 4, 2, 2))
        assert torch.equal(vq.codebook, before)


def test_codes_are_moved_after_as_many_steps_however_many_parts_their_batches_have():
    z, moved = torch.randn(8, 4, 3, 3), {}
    for num_parts in (1, 4):
        torch.manual_seed(0)
        vq = quantizer(num_codes=256, revive_after_steps=3).train()
        found = []
        for _ in range(3):
            for part in z.chunk(num_parts):
                vq(part)
            found.append(vq.end_step())
        moved[num_parts] = found
    assert [len(found) for found in moved[1]][:2] == [0, 0] and len(moved[1][2]) > 100
    assert all(torch.equal(*pair) for pair in zip(moved[1], moved[4], strict=True))


def test_a_batch_that_is_not_finite_moves_no_code_onto_it():
    vq = quantizer(revive_after_steps=1).train()
    before = vq.codebook.clone()
    z = torch.full((1, 4, 2, 2), torch.nan)
    train_step(vq, z)
    assert torch.equal(vq.codebook, before)
    z[..., 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # of its four positions one is finite
    for _ in range(20):
        train_step(vq, z)
    assert vq.codebook.isfinite().all()
    assert (F.normalize(vq.codebook, dim=-1)[:, 0] > 0.99).sum() > 10


def test_low_precision_around_it_does_not_change_the_codes():
    vq, z = quantizer().eval(), torch.randn(8, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = vq.encode(z)["tokens"]
    assert torch.equal(tokens, vq.encode(z)["tokens"])


def test_usage_and_perplexity_of_known_counts():
    even = usage_metrics(torch.full((8,), 5))
    assert even["codebook_usage"] == 1.0
    assert even["codebook_perplexity"].item() == pytest.approx(8.0)
    skewed = usage_metrics(torch.tensor([3, 1, 0, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert skewed["codebook_usage"] == 0.5
    assert skewed["codebook_perplexity"].item() == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize("config", [VQ_CONFIG, FSQ_CONFIG, KL_CONFIG], ids=lambda config: config["kind"])
def test_every_kind_keeps_the_interface_that_stages_rely_on(config):
    bottleneck = build_bottleneck(config).train()
    z = torch.randn(2, bottleneck.encoder_channels, 3, 3, requires_grad=True)
    output, latents = bottleneck(z), bottleneck.encode(z)
    assert output.z.shape == bottleneck.decode(latents).shape == (2, bottleneck.latent_channels, 3, 3)
    assert output.loss.shape == () and all(metric.shape == () and not metric.requires_grad for metric in output.metrics.values())
    (output.z.square().sum() + output.loss).backward()
    assert z.grad.abs().sum() > 0
    assert bottleneck.end_step().dtype == torch.int64
    if bottleneck.is_discrete:
        assert latents["tokens"].dtype == torch.int64 and 0 <= latents["tokens"].min() <= latents["tokens"].max() < bottleneck.num_codes
    else:
        assert {name: tensor.dtype for name, tensor in latents.items()} == {"mean": torch.float32, "logvar": torch.float32}


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 4], [7]])
def test_every_fsq_token_stands_for_its_own_code_and_comes_back_from_it(levels):
    fsq = FiniteScalarQuantizer(levels)
    tokens = torch.arange(math.prod(levels)).reshape(1, 1, -1)
    codes = fsq.decode({"tokens": tokens})  # (1, D, 1, num_codes)
    assert len(codes.flatten(2).squeeze(0).T.unique(dim=0)) == fsq.num_codes
    half = torch.tensor(levels).reshape(-1, 1, 1) // 2
    digits = (codes * half).round().long() + half  # undo the scaling: what the code's channels are
    assert (digits.amin(dim=(0, 2, 3)) == 0).all() and (digits.amax(dim=(0, 2, 3)) == torch.tensor(levels) - 1).all()
    assert torch.equal(fsq._to_tokens(digits.permute(0, 2, 3, 1)), tokens)


def test_an_encoder_can_reach_every_fsq_code_and_training_feeds_the_decoder_exactly_what_is_stored():
    fsq = FiniteScalarQuantizer([8, 5, 2])
    sweep = torch.linspace(-8, 8, 81)
    z = torch.stack(torch.meshgrid(sweep, sweep, sweep, indexing="ij")).reshape(1, 3, 81, -1)
    latents, output = fsq.encode(z), fsq(z)
    assert len(latents["tokens"].unique()) == fsq.num_codes == 80
    assert torch.allclose(output.z, fsq.decode(latents), atol=1e-6)
    assert output.metrics["codebook_usage"] == 1.0 and output.loss == 0


def test_fsq_gradient_is_that_of_the_bounding_tanh_as_if_nothing_were_rounded():
    fsq, z = FiniteScalarQuantizer([5, 5]), torch.randn(1, 2, 4, 4, requires_grad=True)
    actual = torch.autograd.grad(fsq(z).z.sum(), z)[0]
    expected = torch.autograd.grad((torch.tanh(z) * 2.002 / 2).sum(), z)[0]  # an odd number of levels: no offset
    assert torch.allclose(actual, expected, atol=1e-6)


def test_fsq_refuses_levels_that_cannot_be_told_apart():
    with pytest.raises(ValueError, match="at least 2"):
        FiniteScalarQuantizer([8, 1])


def test_kl_term_is_the_closed_form_summed_per_image_and_weighted():
    gaussian, z = DiagonalGaussian(latent_channels=3, kl_weight=0.25), torch.randn(4, 6, 2, 2)
    mean, logvar = z.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    output = gaussian(z)
    assert output.loss.item() == pytest.approx(0.25 * expected.item(), rel=1e-5)
    assert output.metrics["kl_nats_per_image"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.metrics["noise_std"].item() == pytest.approx(posterior.stddev.mean().item(), rel=1e-5)
    assert gaussian(torch.zeros(1, 6, 2, 2)).loss == 0


def test_training_samples_the_gaussian_and_evaluation_takes_its_mean():
    gaussian = DiagonalGaussian(latent_channels=1, kl_weight=0.0)
    z = torch.cat([torch.full((4000, 1, 2, 2), 3.0), torch.full((4000, 1, 2, 2), math.log(0.25))], dim=1)
    samples = gaussian.train()(z).z
    assert samples.mean().item() == pytest.approx(3.0, abs=0.02)
    assert samples.std().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(gaussian.eval()(z).z, z[:, :1])
    assert torch.equal(gaussian.decode(gaussian.encode(z)), z[:, :1])


def test_absurd_log_variances_stay_finite():
    output = DiagonalGaussian(latent_channels=1, kl_weight=1.0)(torch.tensor([0.0, 1e6, 0.0, -1e6]).reshape(2, 2, 1, 1))
    assert output.z.isfinite().all() and output.loss.isfinite()
