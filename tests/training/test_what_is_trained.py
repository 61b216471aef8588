"""Every arm of every preset trains what its settings say: the modules, batches and optimizers are looked at, and not their records."""

from bisect import bisect_left
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import training.autoencoder as training
from flows.overlay import compose
from models.bottleneck import build_bottleneck
from params import Params, select_sections
from storage.decoders import save_decoder
from storage.frozen import encoder_config, load_encoder, save_encoder, save_probe
from storage.shards import ShardDataset
from tasks.encode import run as encode
from tests.training.tiny import SECTIONS, write_tiny_shards
from training.autoencoder import Stage1Objective, Stage2Objective, bottleneck_config
from training.loop import Trainer

PRESETS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "presets").glob("*.yaml"))}
CPU = torch.device("cpu")
BATCH = list(range(4))


def small(name: str) -> dict:
    """The tree of a preset whose networks, images and batches are small: widths, places and rates of what an arm changes stay."""
    tree = yaml.safe_load(compose(PRESETS["default"], PRESETS[name]))
    tree["autoencoder"] |= {"channels": 8, "attention_resolutions": []}
    tree["dataset"]["image_size"] = 8 * tree["autoencoder"]["patch_size"] * 2 ** (len(tree["autoencoder"]["channel_multipliers"]) - 1)
    if tree["prior"]["kind"] == "dit":
        tree["prior"]["patch_size"] = 1
    tree["reconstruction_loss"] |= {"discriminator_channels": 4, "perceptual": "none"}
    for stage in ("stage1", "stage2"):
        tree[stage] |= {"batch_size": 4, "num_microbatches": 1, "num_ray_workers": 0, "precision": "fp32"}
    tree["runtime"] |= {"device": "cpu", "num_threads": 1, "num_loader_processes": 0}
    return tree


def rates(module: nn.Module) -> tuple[set[float], set[float]]:
    """Of every dropout within residual branches, and of every one behind a block."""
    found = [(name.endswith("block_dropout"), part.p) for name, part in module.named_modules() if isinstance(part, nn.Dropout)]
    return {p for is_behind, p in found if not is_behind}, {p for is_behind, p in found if is_behind}


def is_random(module: nn.Module, *shape: int) -> bool:
    """Whether two passes in training differ."""
    module.train()
    x = torch.randn(shape)
    with torch.no_grad():
        return not torch.equal(module(x), module(x))


def first_step_with(term: str, objective, num_steps: int) -> int:
    """The first step in whose loss a term is; ``num_steps`` where it is in none."""
    images = torch.zeros(2, 3, objective.config.image_size, objective.config.image_size)
    decoder = objective.modules["decoder"] if "decoder" in objective.modules else objective.modules["autoencoder"]["decoder"]
    z = torch.randn(2, objective.config.latent_channels, objective.config.latent_size, objective.config.latent_size)

    def has_term(step: int) -> bool:
        return term in objective.loss_terms(decoder(z), images, decoder.last_layer, step)[1]

    return bisect_left(range(num_steps), True, key=has_term)


class Noise:
    """What is done to the decoder's input, and whether the decoder then gets it."""

    def __init__(self, monkeypatch, decoder: nn.Module):
        self.calls, self.seen, disturb = [], [], training.disturb

        def watched(z, tokens, bottleneck, kind, strength):
            self.calls.append((kind, strength, z.detach(), disturb(z, tokens, bottleneck, kind, strength)))
            return self.calls[-1][-1]

        monkeypatch.setattr(training, "disturb", watched)
        decoder.register_forward_pre_hook(lambda module, arguments: self.seen.append(arguments[0].detach()))

    def require(self, settings) -> None:
        if settings is None:
            assert self.calls == []
            return
        [(kind, strength, before, after)] = self.calls
        assert (kind, strength) == (settings.kind, settings.strength)
        assert torch.equal(self.seen[-1], after.detach()) and not torch.equal(before, after)


def require_paces(objective, params, stage: str, num_steps: int, folder: Path) -> Trainer:
    """Every trained parameter has the learning rate and Adam's betas that the settings give its module, early and late."""
    settings, factor = getattr(params, stage), params.arm.stage2.learning_rate_factor if stage == "stage2" else 1.0
    trainer = Trainer(objective, settings, num_steps, 0, params.runtime, folder, CPU)
    groups = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(groups) == {id(p) for module in objective.modules.values() for p in module.parameters()}
    for step in {0, num_steps - 1}:
        trainer.progress.step = step
        trainer._step(objective.examples.batch(BATCH))
        for name, module in objective.modules.items():
            scheduled = training_rate(settings, step, num_steps)
            is_adversary = name == "discriminator"
            expected = params.reconstruction_loss.discriminator_learning_rate if is_adversary else factor * scheduled
            betas = params.reconstruction_loss.discriminator_betas if is_adversary else settings.betas
            for parameter in module.parameters():
                group = groups[id(parameter)]
                assert group["lr"] == pytest.approx(expected) and list(group["betas"]) == betas
    return trainer


def training_rate(settings, step: int, num_steps: int) -> float:
    """A warm-up, then a cosine, written once more: at its first step and at its last."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    low = settings.min_learning_rate_fraction
    return settings.learning_rate * (low + (1 - low) * (1 + torch.cos(torch.pi * torch.tensor(share, dtype=torch.float64)).item()) / 2)


def require_adversary(objective, arm_stage, head_start: int) -> None:
    assert ("discriminator" in objective.modules) == (arm_stage.num_adversarial_steps > 0)
    first = first_step_with("adversarial", objective, arm_stage.num_steps)
    assert arm_stage.num_steps - first == arm_stage.num_adversarial_steps
    if arm_stage.num_adversarial_steps:
        assert first - first_step_with("discriminator", objective, arm_stage.num_steps) == head_start


def require_stage1(params, inputs, folder: Path, monkeypatch) -> Stage1Objective:
    objective, arm, settings = Stage1Objective(params, inputs, CPU), params.arm.stage1, params.autoencoder
    parts = objective.modules["autoencoder"]
    encoder, decoder = parts["encoder"], parts["decoder"]
    widths = encoder.conv_in.out_channels, decoder.conv_out.in_channels, decoder.conv_in.out_channels
    first, last = (round(8 * arm.channels_multiplier) * settings.channel_multipliers[end] for end in (0, -1))
    assert widths == (8, first, last)
    assert rates(encoder) == ({settings.dropout}, {0.0}) and rates(decoder) == ({max(arm.dropout, settings.dropout)}, {arm.block_dropout})
    latents = 2, decoder.config.latent_channels, decoder.config.latent_size, decoder.config.latent_size
    assert is_random(decoder, *latents) == (max(arm.dropout, settings.dropout, arm.block_dropout) > 0)
    bottleneck = build_bottleneck(params.bottleneck.model_dump() | (arm.bottleneck or {}))
    assert vars_of(parts["bottleneck"]) == vars_of(bottleneck)
    require_adversary(objective, arm, params.reconstruction_loss.discriminator_head_start)
    noise = Noise(monkeypatch, decoder)
    objective.loss(objective.examples.batch(BATCH), 0)
    noise.require(arm.latent_noise)
    monkeypatch.undo()
    before = [{name: p.clone() for name, p in part.named_parameters()} for part in parts.values()]
    require_paces(objective, params, "stage1", arm.num_steps, folder)
    for part in (0, -1):  # a bottleneck need not have any
        assert any(not torch.equal(p, before[part][name]) for name, p in list(parts.values())[part].named_parameters())
    return objective


def vars_of(bottleneck: nn.Module) -> dict:
    return {name: value for name, value in vars(bottleneck).items() if isinstance(value, int | float)}


def write_stage1(objective: Stage1Objective, params, inputs, folder: Path) -> None:
    """What the stages stage1, freeze and encode leave for stage 2."""
    parts = objective.modules["autoencoder"]
    inputs.freeze, inputs.stage1, inputs.encode = (folder / name for name in ("freeze", "stage1", "encode"))
    config = encoder_config(objective.config, bottleneck_config(params.bottleneck, params.arm.stage1))
    save_encoder(inputs.freeze, config, parts["encoder"], parts["bottleneck"])
    frozen, probe = load_encoder(inputs.freeze), objective.validation.images(range(2))
    save_probe(inputs.freeze, probe, frozen.encode(probe))
    save_decoder(inputs.stage1, objective.config, parts["decoder"], frozen.sha256)
    for name in ("encode", "scratch"):
        (folder / name).mkdir()
    encode(params, inputs, SimpleNamespace(artifact=inputs.encode, scratch=folder / "scratch"))


def require_stage2(params, first: Stage1Objective, inputs, folder: Path, monkeypatch) -> None:
    objective, arm, settings = Stage2Objective(params, inputs, CPU), params.arm.stage2, params.autoencoder
    decoder, auxiliary = objective.modules["decoder"], first.modules["autoencoder"]["decoder"]
    assert decoder.conv_out.in_channels == 8 * settings.channel_multipliers[0]
    assert rates(decoder) == ({settings.dropout}, {0.0})
    latents = 2, decoder.config.latent_channels, decoder.config.latent_size, decoder.config.latent_size
    assert is_random(decoder, *latents) == (settings.dropout > 0)
    assert objective.config == decoder.config and objective.config.decoder_dropout == settings.dropout  # what the artifact will say
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (decoder, auxiliary)]
    assert (weights[0].shape == weights[1].shape and torch.equal(*weights)) == (arm.start == "stage1")
    require_adversary(objective, arm, params.reconstruction_loss.discriminator_head_start)
    noise = Noise(monkeypatch, decoder)
    objective.loss(objective.examples.batch(BATCH), 0)
    noise.require(arm.latent_noise)
    monkeypatch.undo()
    trained = {id(p) for module in objective.modules.values() for p in module.parameters()}
    assert not trained & {id(p) for p in objective.bottleneck.parameters()}
    frozen = {name: value.clone() for name, value in objective.bottleneck.state_dict().items()}
    before = weights[0].clone()
    require_paces(objective, params, "stage2", arm.num_steps, folder)
    assert all(torch.equal(value, frozen[name]) for name, value in objective.bottleneck.state_dict().items())
    assert not torch.equal(before, torch.cat([p.flatten() for p in decoder.parameters()]))


@pytest.mark.parametrize("name", PRESETS)
def test_each_arm_trains_what_its_settings_say(name, tmp_path, monkeypatch):
    params = Params.model_validate(small(name))
    shards = write_tiny_shards(tmp_path / "shards", num_images=8, labels=False, size=params.dataset.image_size)
    assert len(ShardDataset(shards, "train")) >= len(BATCH)
    made = {}  # arms share stages 1
    for arm, settings in params.arms.items():
        view = select_sections(params, SECTIONS, arm)
        view.seed, view.run_name = 0, arm
        key = settings.stage1.model_dump_json()
        if key not in made:
            inputs = SimpleNamespace(shards=shards)
            first = require_stage1(view, inputs, tmp_path / arm / "state1", monkeypatch)
            write_stage1(first, view, inputs, tmp_path / arm)
            made[key] = first, inputs
        if settings.stage2.num_steps:
            require_stage2(view, *made[key], tmp_path / arm / "state2", monkeypatch)
