"""The Diffusion Transformer: zero at first, published sizes, raw latents outside and normalised ones inside, guidance."""

import dataclasses

import pytest
import torch

from models.dit import SIZES, DiT, DiTConfig, SelfAttention, generate, grid_embedding
from models.flow import shift_times
from tests.models.rows import Rows, SharedRows

CONFIG = DiTConfig(
    latent_channels=3,
    latent_size=4,
    num_classes=4,
    num_layers=2,
    num_heads=2,
    width=16,
    patch_size=2,
    label_dropout=0.0,
    time_distribution="logit_normal",
    time_shift=1.0,
    latent="sample",
)
MEAN, STD = torch.tensor([5.0, -3.0, 0.1]), torch.tensor([4.0, 0.2, 1.5])


def model(zero: bool = False, **changes) -> DiT:
    torch.manual_seed(0)
    built = DiT(dataclasses.replace(CONFIG, **changes))
    built.set_statistics(MEAN, STD)
    if not zero:
        for parameter in built.parameters():  # away from the zero it starts as
            torch.nn.init.normal_(parameter, std=0.2)
    return built.eval()


def latents(num: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.randn(num, 3, 4, 4), "logvar": torch.randn(num, 3, 4, 4) - 1}


def test_a_new_network_outputs_exactly_zero_and_yet_learns():
    dit = model(zero=True)
    velocity = dit(torch.randn(5, 3, 4, 4), torch.rand(5), torch.randint(5, (5,)))
    assert velocity.shape == (5, 3, 4, 4) and (velocity == 0).all()
    optimizer = torch.optim.Adam(dit.train().parameters(), 1e-2)
    fixed, labels = (
        {"mean": MEAN.reshape(3, 1, 1).expand(16, 3, 4, 4) + 1, "logvar": torch.full((16, 3, 4, 4), -20.0)},
        torch.zeros(16).long(),
    )
    losses = []
    for _ in range(80):
        losses.append(dit.loss(fixed, labels).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in dit.parameters())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_named_sizes_have_the_published_number_of_parameters(name, millions):
    """DiT-*/2 on latents of 4 x 32 x 32 and 1000 classes, as in table 1 of the paper and its code."""
    with torch.device("meta"):
        dit = DiT(dataclasses.replace(CONFIG, latent_channels=4, latent_size=32, num_classes=1000, **SIZES[name]))
    assert sum(p.numel() for p in dit.parameters()) / 1e6 == pytest.approx(millions, rel=0.007)


def test_patches_that_do_not_tile_the_latent_are_refused_by_name():
    with pytest.raises(ValueError, match=r"patches of 2 x 2 do not tile a latent of 7 x 7.*patch_size"):
        dataclasses.replace(CONFIG, latent_size=7)


def test_every_position_has_its_own_place_and_patches_go_back_where_they_came_from():
    embedding = grid_embedding(6, 16)
    distances = torch.cdist(embedding, embedding)
    nearest = (distances + 10 * torch.eye(36)).argmin(dim=1)
    assert set((nearest - torch.arange(36)).abs().tolist()) <= {1, 6}  # a neighbour in the row or in the column
    dit, x = model(), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        for block in dit.blocks:
            block.modulation.weight.zero_()
            block.modulation.bias.zero_()  # blocks are the identity: each patch of the output sees its own input only
    changed = x.clone()
    changed[0, :, 2:, :2] += 1
    differs = (dit(changed, torch.tensor([0.5]), torch.tensor([0])) != dit(x, torch.tensor([0.5]), torch.tensor([0])))[0].any(dim=0)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[2:, :2] = True
    assert torch.equal(differs, expected)


def test_attention_starts_as_that_of_rms_normalised_queries_and_keys():
    torch.manual_seed(0)
    attention, x = SelfAttention(width=16, num_heads=2), torch.randn(3, 5, 16)
    q, k, v = attention.qkv(x).reshape(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q, k = (torch.nn.functional.rms_norm(values, (8,)) for values in (q, k))
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(dim=-1)
    assert torch.allclose(attention(x), attention.proj((weights @ v).transpose(1, 2).reshape(3, 5, 16)), atol=1e-5)


def test_time_class_and_position_all_matter():
    dit, x, half, label = model(), torch.randn(1, 3, 4, 4), torch.tensor([0.5]), torch.tensor([1])
    out = dit(x, half, label)
    assert not torch.allclose(out, dit(x, torch.tensor([0.6]), label), atol=1e-4)
    assert not torch.allclose(out, dit(x, half, torch.tensor([2])), atol=1e-4)
    assert not torch.allclose(out.flip(-1, -2), dit(x.flip(-1, -2), half, label), atol=1e-4)


def test_latents_of_any_scale_give_the_same_loss_and_samples_of_that_scale():
    """Normalisation is applied once on the way in and undone once on the way out: other units change nothing but the units."""
    plain, scaled, raw = model(), model(), latents(6)
    scaled.set_statistics(MEAN * 10 + 7, STD * 10)
    in_other_units = {"mean": raw["mean"] * 10 + 7, "logvar": raw["logvar"] + 2 * torch.log(torch.tensor(10.0))}
    labels = torch.tensor([0, 1, 2, 3, -1, -1])
    assert torch.allclose(plain.loss(raw, labels), scaled.loss(in_other_units, labels), rtol=1e-3)
    drawn, drawn_scaled = (generate(dit, labels.clamp(min=0), Rows(range(6)), num_steps=4)["mean"] for dit in (plain, scaled))
    assert torch.allclose(drawn * 10 + 7, drawn_scaled, rtol=1e-3, atol=1e-3)


def test_a_zero_network_draws_noise_with_the_statistics_of_the_latents():
    drawn = generate(model(zero=True), torch.zeros(2000).long(), SharedRows(2000), "euler", num_steps=2)["mean"]
    assert torch.allclose(drawn.mean(dim=(0, 2, 3)), MEAN, atol=0.1)
    assert torch.allclose(drawn.transpose(0, 1).flatten(1).std(dim=1), STD, rtol=0.03)


def test_a_channel_that_is_always_the_same_can_be_learned_and_comes_back():
    dit, data = model(latent="mean"), latents(4)
    dit.set_statistics(MEAN, torch.tensor([4.0, 0.0, 1.5]))
    data["mean"][:, 1] = MEAN[1]
    assert dit.loss(data, torch.zeros(4).long()).isfinite().all()
    drawn = generate(dit, torch.zeros(2).long(), Rows(range(2)), num_steps=2)["mean"]
    assert torch.allclose(drawn[:, 1], MEAN[1].expand(2, 4, 4), atol=1e-3)


def test_forgotten_statistics_show_at_the_first_loss_and_stored_ones_come_back():
    assert DiT(CONFIG).loss(latents(2), torch.tensor([0, 1])).isnan().all()
    restored = DiT(CONFIG)
    restored.load_state_dict(model().state_dict())
    assert torch.equal(restored.latent_mean, MEAN) and torch.equal(restored.latent_std, STD)


def test_loss_is_fixed_in_evaluation_and_random_in_training():
    dit, data, labels = model(), latents(8), torch.randint(4, (8,))
    first = dit.loss(data, labels)
    torch.rand(1)
    assert first.shape == (8,) and torch.equal(dit.loss(data, labels), first)
    dit.train()
    assert not torch.equal(dit.loss(data, labels), dit.loss(data, labels))


def test_the_loss_sees_the_variance_of_the_posterior_only_when_it_samples():
    data, labels = latents(4), torch.zeros(4).long()
    narrow = {**data, "logvar": torch.full_like(data["logvar"], -30.0)}
    sampled, mean = model(latent="sample"), model(latent="mean")
    assert torch.equal(mean.loss(data, labels), mean.loss(narrow, labels))
    assert not torch.allclose(sampled.loss(data, labels), sampled.loss(narrow, labels))
    assert torch.allclose(sampled.loss(narrow, labels), mean.loss(data, labels), atol=1e-4)


def test_unlabelled_means_no_class_and_labels_are_dropped_in_training():
    dit, data = model(label_dropout=1.0), latents(4)
    labels, none = torch.arange(4), torch.full((4,), -1)
    assert torch.equal(dit.loss(data, none), dit.loss(data, torch.full((4,), dit.no_class)))
    assert not torch.allclose(dit.loss(data, labels), dit.loss(data, none))
    dit.train()
    losses = []
    for given in (labels, none):
        torch.manual_seed(3)
        losses.append(dit.loss(data, given))
    assert torch.equal(*losses)


@pytest.mark.parametrize("sampler", ["euler", "heun", "stochastic"])
def test_an_image_depends_on_its_own_row_and_on_its_label(sampler):
    dit, labels = model(), torch.tensor([0, 1, 2, 4])
    settings = {"sampler": sampler, "num_steps": 3, "guidance_scale": 2.0}
    together = generate(dit, labels, Rows(range(4)), **settings)["mean"]
    alone = torch.cat([generate(dit, labels[i : i + 1], Rows([i]), **settings)["mean"] for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, generate(dit, labels.flip(0), Rows(range(4)), **settings)["mean"], atol=1e-2)


def test_guidance_scale_one_equals_no_guidance_and_costs_no_second_pass():
    dit, labels, rows = model(), torch.tensor([0, 1]), []
    dit.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    settings = {"sampler": "euler", "num_steps": 4}
    plain, one, outside, guided = (
        generate(dit, labels, Rows(range(2)), **settings, **guidance)["mean"]
        for guidance in ({}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.4)}, {"guidance_scale": 3.0})
    )
    assert torch.equal(plain, one) and torch.equal(plain, outside) and not torch.allclose(plain, guided, atol=1e-2)
    assert rows == [2] * 12 + [4] * 4


def test_the_resolution_shift_moves_the_times_of_training_and_of_sampling_alike():
    plain, shifted, seen = model(time_distribution="uniform"), model(time_distribution="uniform", time_shift=3.0), []
    for dit in (plain, shifted):
        dit.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
        dit.loss(latents(100), torch.zeros(100).long())
        generate(dit, torch.tensor([0]), Rows([0]), "euler", num_steps=2)
    assert torch.allclose(seen[3], shift_times(seen[0], 3.0)) and abs(seen[0].mean() - 0.5) < 0.01
    assert [times.item() for times in seen[1:3]] == [1.0, 0.5] and [times.item() for times in seen[4:6]] == [1.0, 0.75]


def test_it_computes_under_autocast_with_an_fp32_loss():
    dit = model().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dit.loss(latents(2), torch.tensor([0, 1]))
    loss.mean().backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in dit.parameters())
