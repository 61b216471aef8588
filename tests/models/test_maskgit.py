"""Masked generation: no mask is left whatever the steps, the loss counts masked tokens only, samples follow the data."""

import dataclasses
import math

import pytest
import torch

from models.maskgit import MaskGIT, MaskGITConfig, generate
from tests.models.rows import Rows, SharedRows

CONFIG = MaskGITConfig(
    num_codes=11,
    latent_size=3,
    num_classes=4,
    num_layers=2,
    num_heads=2,
    width=16,
    dropout=0.0,
    label_dropout=0.0,
    mask_schedule="cosine",
)


def model(**changes) -> MaskGIT:
    torch.manual_seed(0)
    built = MaskGIT(dataclasses.replace(CONFIG, **changes))
    for parameter in built.parameters():  # away from the near-uniform start, so that differences show
        torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def train(maskgit: MaskGIT, draw_batch, num_steps: int) -> MaskGIT:
    optimizer = torch.optim.AdamW(maskgit.train().parameters(), 5e-3, weight_decay=0.0)
    for _ in range(num_steps):
        tokens, labels = draw_batch()
        loss = maskgit.loss({"tokens": tokens}, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return maskgit.eval()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 9, 10, 25])
@pytest.mark.parametrize("choice_temperature", [0.0, 4.5])
def test_sampling_never_leaves_a_mask(num_steps, choice_temperature):
    maskgit, rounds = model(), []
    maskgit.register_forward_pre_hook(lambda _, inputs: rounds.append((inputs[0] == maskgit.mask_token).sum(dim=1)))
    labels = torch.randint(5, (20,))
    tokens = generate(maskgit, labels, Rows(range(20)), num_steps, choice_temperature=choice_temperature)["tokens"]
    assert tokens.shape == (20, 3, 3) and tokens.min() >= 0 and tokens.max() < 11
    counts = torch.stack(rounds)  # (rounds, B): masks at the start of each round
    assert (counts == counts[:, :1]).all() and counts[0, 0] == 9 and (counts.diff(dim=0) < 0).all()
    assert len(counts) == min(num_steps, 9)


def test_the_number_of_masks_follows_the_cosine():
    maskgit, rounds = model(latent_size=8), []
    maskgit.register_forward_pre_hook(lambda _, inputs: rounds.append((inputs[0] == maskgit.mask_token).sum().item()))
    generate(maskgit, torch.tensor([0]), Rows([0]), num_steps=8)
    assert rounds == [round(64 * math.cos(math.pi / 2 * step / 8)) for step in range(8)]


def test_known_tokens_are_never_drawn_again():
    maskgit, inputs_seen = model(latent_size=4), []
    maskgit.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0].clone()))
    final = generate(maskgit, torch.zeros(5).long(), Rows(range(5)), num_steps=6)["tokens"].flatten(1)
    for tokens in inputs_seen:
        known = tokens != maskgit.mask_token
        assert torch.equal(tokens[known], final[known])


def test_one_step_draws_every_token_from_its_own_distribution():
    maskgit, num = model(), 4000
    tokens = generate(maskgit, torch.zeros(num).long(), SharedRows(num), num_steps=1)["tokens"].flatten(1)
    expected = maskgit(torch.full((1, 9), maskgit.mask_token), torch.tensor([0]))[0].softmax(-1)  # (9, 11)
    frequency = torch.nn.functional.one_hot(tokens, 11).double().mean(dim=0)
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / num).sqrt() + 1e-9).all()


def test_without_noise_on_the_choice_the_surest_tokens_are_kept():
    maskgit, inputs_seen = model(), []
    maskgit.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0].clone()))
    generate(maskgit, torch.zeros(6).long(), Rows(range(6)), num_steps=2, temperature=1e-4, choice_temperature=0.0)
    first = inputs_seen[0], torch.zeros(6).long()
    confidence = maskgit(*first).log_softmax(-1).amax(dim=-1)  # a cold draw takes the likeliest
    kept = inputs_seen[1] != maskgit.mask_token
    worst_kept, best_masked = confidence.masked_fill(~kept, torch.inf).amin(1), confidence.masked_fill(kept, -torch.inf).amax(1)
    assert (worst_kept >= best_masked).all()


def test_it_learns_what_tokens_tell_about_each_other():
    """Two patterns, equally frequent: samples are one or the other whole, never a mixture, and both occur."""
    torch.manual_seed(0)
    patterns = torch.stack([torch.arange(9), torch.arange(9).flip(0) + 2]).reshape(2, 3, 3)
    maskgit = train(MaskGIT(CONFIG), lambda: (patterns[torch.randint(2, (32,))], torch.full((32,), -1)), 250)
    drawn = generate(maskgit, torch.full((200,), maskgit.no_class), SharedRows(200), num_steps=9)["tokens"]
    matches = (drawn[:, None] == patterns).all(dim=(2, 3))  # (200, 2)
    assert matches.any(dim=1).float().mean() > 0.9
    assert 0.25 < matches[:, 0].float().mean() < 0.75


def test_guidance_of_one_is_no_guidance_and_more_pulls_towards_the_class():
    maskgit, labels, rows = model(), torch.ones(512, dtype=torch.int64), []
    hook = maskgit.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    plain, one, guided = (
        generate(maskgit, labels, SharedRows(512), 3, **guidance) for guidance in ({}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0})
    )
    assert torch.equal(plain["tokens"], one["tokens"]) and rows == [512] * 6 + [1024] * 3
    hook.remove()
    none = torch.full_like(labels, maskgit.no_class)
    margin = [maskgit.loss(latents, none).mean() - maskgit.loss(latents, labels).mean() for latents in (plain, guided)]
    assert margin[1] > margin[0]


def test_an_image_does_not_depend_on_its_batch():
    maskgit, labels = model(), torch.randint(5, (6,))
    together = generate(maskgit, labels, Rows(range(6)), 4)["tokens"]
    alone = torch.cat([generate(maskgit, labels[i : i + 1], Rows([i]), 4)["tokens"] for i in range(6)])
    assert torch.equal(together, alone)


def test_the_loss_is_that_of_masked_tokens_only():
    maskgit, tokens = model(), torch.randint(11, (64, 3, 3))
    inputs_seen = []
    maskgit.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs))
    losses = maskgit.loss({"tokens": tokens}, torch.zeros(64).long())
    masked_tokens, labels = inputs_seen[0]
    masked = masked_tokens == maskgit.mask_token
    assert torch.equal(masked_tokens[~masked], tokens.flatten(1)[~masked])
    counts = masked.sum(dim=1)
    assert counts.min() >= 1 and counts.max() == 9 and abs(counts.float().mean() - 9 * 2 / math.pi) < 0.5  # the mean of the cosine
    likelihood = maskgit(masked_tokens, labels).log_softmax(-1).gather(2, tokens.flatten(1)[..., None]).squeeze(2)
    expected = torch.stack([-likelihood[i][masked[i]].mean() for i in range(64)])
    assert torch.allclose(losses, expected, atol=1e-5)


def test_loss_is_fixed_in_evaluation_and_random_in_training():
    maskgit, latents, labels = model(label_dropout=0.5), {"tokens": torch.randint(11, (16, 3, 3))}, torch.randint(-1, 4, (16,))
    first = maskgit.loss(latents, labels)
    torch.rand(1)
    assert first.shape == (16,) and torch.equal(maskgit.loss(latents, labels), first)
    maskgit.train()
    assert not torch.equal(maskgit.loss(latents, labels), maskgit.loss(latents, labels))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="mask_schedule must be one of cosine, not 'cosin'"):
        dataclasses.replace(CONFIG, mask_schedule="cosin")
    with pytest.raises(ValueError, match="1 step"):
        generate(model(), torch.tensor([0]), Rows([0]), num_steps=0)
