"""The sum: each term by its own formula, under its own name, times its own weight."""

from types import SimpleNamespace

import pytest
import torch

from losses.perceptual import build_perceptual
from losses.reconstruction import AutoencoderLoss, build_terms
from models.discriminator import PatchDiscriminator
from sections import ReconstructionLoss
from tests.training.tiny import tiny_params

CPU = torch.device("cpu")
HEAD_START = 3
STAGE = SimpleNamespace(num_steps=10, num_adversarial_steps=4)  # the discriminator learns from step 3 and counts from step 6


def settings(**changes) -> ReconstructionLoss:
    """Those of params.yaml with the cheapest terms, but for ``changes``."""
    return tiny_params().reconstruction_loss.model_copy(update={"discriminator_head_start": HEAD_START, **changes})


def images(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def decode(last_layer: torch.Tensor) -> torch.Tensor:
    """What stands for a decoder's last layer: colours mixed."""
    return torch.einsum("bchw,cd->bdhw", images(0), last_layer)


def compare(loss: AutoencoderLoss, step: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(Gradient with respect to the last layer, loss, metrics)."""
    last_layer = torch.eye(3).requires_grad_()
    value, metrics = loss(decode(last_layer), images(1), last_layer, step)
    value.backward()
    return last_layer.grad, value, metrics


@pytest.mark.parametrize(
    ("name", "changes", "formula"),
    [
        ("pixel", {"pixel": "l1"}, lambda ours, theirs: (ours - theirs).abs().mean()),
        ("pixel", {"pixel": "l2"}, lambda ours, theirs: (ours - theirs).square().mean()),
        ("perceptual", {"perceptual": "efficientnet-lite0"}, lambda *both: build_perceptual("efficientnet-lite0", None)(*both).mean()),
    ],
)
def test_a_term_is_its_formula_with_its_weight(name, changes, formula):
    terms = {term.name: term for term in build_terms(settings(**changes, **{f"{name}_weight": 0.7}), CPU)}
    assert terms[name].weight == 0.7
    torch.testing.assert_close(terms[name].distance(images(0), images(1)), formula(images(0), images(1)))
    assert terms[name].distance(images(0).bfloat16(), images(1)).dtype == torch.float32


def test_the_loss_is_the_weighted_sum_and_each_term_is_logged_without_its_weight():
    loss = AutoencoderLoss(settings(perceptual="efficientnet-lite0", pixel_weight=0.7, perceptual_weight=2.5), STAGE, None, CPU)
    _, value, metrics = compare(loss, step=9)
    assert list(metrics) == [term.name for term in loss.terms] and {"pixel", "perceptual"} <= set(metrics)
    torch.testing.assert_close(value, sum(term.weight * term.distance(images(0), images(1)) for term in loss.terms))
    torch.testing.assert_close(value, sum(term.weight * metrics[term.name] for term in loss.terms))


@pytest.mark.parametrize(
    ("step", "further"),
    [(2, []), (3, ["discriminator"]), (5, ["discriminator"]), (6, ["adversarial", "adaptive_weight", "discriminator"])],
)
def test_the_discriminator_learns_before_it_counts(step, further):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(4, 1)
    loss = AutoencoderLoss(settings(), STAGE, discriminator, CPU)
    assert list(compare(loss, step)[2]) == [*(term.name for term in loss.terms), *further]
    assert any(p.grad is not None for p in discriminator.parameters()) is bool(further)


def test_in_adversarial_steps_the_gradient_is_that_of_the_balanced_sum():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(4, 1)
    loss = AutoencoderLoss(settings(adversarial_weight=0.3), STAGE, discriminator, CPU)
    gradient, _, metrics = compare(loss, step=6)
    last_layer = torch.eye(3).requires_grad_()
    reconstruction = decode(last_layer)
    distance = sum(term.weight * term.distance(reconstruction, images(1)) for term in loss.terms)
    expected = distance - 0.3 * metrics["adaptive_weight"] * discriminator(reconstruction).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, last_layer)[0])
