"""Vector quantisation: nearest codes, straight-through gradients, the commitment weight on the right term, revival."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.bottleneck import VectorQuantizer, build_bottleneck, usage_metrics


def quantizer(**changes) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(**{"num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 0, **changes})


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


def test_a_dead_code_is_moved_onto_an_encoder_output_and_then_used():
    vq = quantizer(revive_after_steps=3).train()
    z = F.normalize(torch.randn(1, 4, 1, 1), dim=1).expand(2, 4, 3, 3) + 0.01 * torch.randn(2, 4, 3, 3)
    usage = [vq(z).metrics["codebook_usage"].item() for _ in range(5)]
    assert max(usage[:3]) < 0.2
    assert usage[4] > 0.4  # after three unused steps, the rest stand on encoder outputs and win positions
    similarity = F.normalize(vq.codebook, dim=-1) @ F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4).T
    assert (similarity.max(dim=1).values > 0.99).sum() > 10


def test_nothing_is_revived_when_turned_off_or_in_evaluation():
    for vq in (quantizer(revive_after_steps=0).train(), quantizer(revive_after_steps=1).eval()):
        before = vq.codebook.clone()
        for _ in range(5):
            vq(torch.ones(1, 4, 2, 2))
        assert torch.equal(vq.codebook, before)


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


def test_rebuilt_from_its_config():
    config = {"kind": "vq", "num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 7}
    assert build_bottleneck(config).revive_after_steps == 7
