"""Objectives of stage 1 (encoder, bottleneck and auxiliary decoder) and stage 2 (the real decoder on frozen latents)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from errors import PipelineError
from kinds import Bottleneck
from losses.reconstruction import AutoencoderLoss
from models.autoencoder import AutoencoderConfig, Decoder, Encoder, from_uint8
from models.bottleneck import build_bottleneck, usage_metrics
from models.discriminator import PatchDiscriminator
from models.latent_noise import disturb
from models.metric import Metric
from sections import ArmStage1, ArmStage2, Autoencoder, LatentNoise, Optimization, ReconstructionLoss
from storage.decoders import load_decoder
from storage.frozen import load_frozen
from storage.latents import LatentDataset
from storage.shards import ShardDataset, read_manifest
from training.alarms import idle_discriminator, idle_stage2, strengthen, unstable, weak_decoder
from training.footprint import require_memory
from training.linear_map import GAIN_OVER_LINEAR, GAIN_OVER_MEAN, LinearMap, MeanImage
from training.randomness import derive_seed
from training.schedule import Pace

MAX_VALIDATION_IMAGES = 500
VALIDATION_BATCH_SIZE = 100
LESS_ADVERSARIAL = "lower the arm's num_adversarial_steps"
GAIN_OVER_STAGE1 = Metric("gain_over_stage1_db", "PSNR above stage 1's decoder", 1, "dB", note="Of the same latents, mean over images.")
GAIN_ERROR = Metric("gain_over_stage1_standard_error_db", "PSNR above stage 1's decoder, standard error", unit="dB")


class ImageExamples:
    """Images and nothing else, from shards."""

    def __init__(self, shards: ShardDataset):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return {"images": self.shards.images(indices)}


class LatentExamples:
    """Images beside the latents that were made of them.

    Raises:
        PipelineError: when the latents were made from other shards than these.
    """

    def __init__(self, shards: ShardDataset, latents: LatentDataset):
        self.shards, self.latents = shards, latents
        made_from = [(file["shard"], file["shard_sha256"]) for file in latents.files]
        present = [(entry["name"], entry["sha256"]) for entry, _ in shards.shards]
        if made_from != present:
            raise PipelineError(f"{latents.folder}: these latents were made from other image shards; run dvc repro encode")

    def __len__(self) -> int:
        return len(self.shards)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return {"images": self.shards.images(indices), **self.latents.batch(indices)}


class Stage1Objective:
    """Encoder, bottleneck and auxiliary decoder, trained together (arXiv 2307.08283, section 4)."""

    averaged = ("autoencoder",)
    selection = None

    def __init__(self, params: SimpleNamespace, inputs: SimpleNamespace, device: torch.device):
        shards = ShardDataset(inputs.shards, "train")
        self.examples = ImageExamples(shards)
        self.validation = ShardDataset(inputs.shards, "validation")
        self.device, self.horizontal_flip = device, params.stage1.horizontal_flip
        image_size = read_manifest(inputs.shards)["image_size"]
        arm = params.arm.stage1
        self.latent_noise = arm.latent_noise
        self.bottleneck_config = bottleneck_config(params.bottleneck, arm)
        self._require_memory(params, image_size)
        bottleneck = _seeded(params.seed, "bottleneck", lambda: build_bottleneck(self.bottleneck_config))
        self.config = autoencoder_config(params.autoencoder, image_size, bottleneck, arm)
        parts = {
            "encoder": _seeded(params.seed, "encoder", lambda: Encoder(self.config)),
            "bottleneck": bottleneck,
            "decoder": _seeded(params.seed, "decoder", lambda: Decoder(self.config)),
        }
        self.modules: dict[str, nn.Module] = {"autoencoder": _place(nn.ModuleDict(parts), device)}
        self.paces = {"discriminator": discriminator_pace(params.reconstruction_loss)}
        self.loss_terms = _build_loss(params, arm, params.stage1, image_size, self.modules, device)
        self.stops_on_alarm = params.stage1.stop_on_alarm
        weakness = strengthen(arm.channels_multiplier, arm.dropout, arm.block_dropout, arm.latent_noise and arm.latent_noise.strength)
        learns = partial(idle_discriminator, discriminator_start=self.loss_terms.discriminator_start)
        self.detectors = (
            partial(weak_decoder, weakness=weakness, is_discrete=bottleneck.is_discrete, hears_noise=arm.latent_noise is not None),
            partial(unstable, loss="pixel", advice=f"halve stage1.learning_rate, or {LESS_ADVERSARIAL}"),
            learns,
        )

    def _require_memory(self, params: SimpleNamespace, image_size: int) -> None:
        arm, num_images = params.arm.stage1, examples_at_once(params.stage1)

        def build() -> nn.Module:
            bottleneck = build_bottleneck(self.bottleneck_config)
            config = autoencoder_config(params.autoencoder, image_size, bottleneck, arm)
            return nn.ModuleDict({"encoder": Encoder(config), "bottleneck": bottleneck, "decoder": Decoder(config)})

        def run(parts: nn.Module) -> Tensor:
            z = parts["encoder"](_empty(num_images, 3, image_size, image_size))
            return parts["decoder"](z[:, : parts["bottleneck"].latent_channels])

        num_activations = num_images * params.autoencoder.channels * (image_size // params.autoencoder.patch_size) ** 2
        advice = "stage1.batch_size, dataset.image_size, autoencoder.channels or the bottleneck's size, or raise stage1.num_microbatches"
        require_memory("the autoencoder", build, run, num_activations, params.stage1, self.device, advice)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = _to_images(batch["images"], self.device)
        if self.horizontal_flip:
            flipped = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
            images = torch.where(flipped, images.flip(-1), images)
        autoencoder = self.modules["autoencoder"]
        output = autoencoder["bottleneck"](autoencoder["encoder"](images))
        reconstruction = autoencoder["decoder"](_with_noise(output.z, output.tokens, autoencoder["bottleneck"], self.latent_noise))
        loss, metrics = self.loss_terms(reconstruction, images, autoencoder["decoder"].last_layer, step)
        return loss + output.loss, {**metrics, **output.metrics}

    def end_step(self, averages: dict[str, nn.Module]) -> None:
        bottleneck = self.modules["autoencoder"]["bottleneck"]
        moved = bottleneck.end_step()
        if len(moved):  # an average would take many steps to follow, and meanwhile hold codes that no image has
            averages["autoencoder"]["bottleneck"].codebook.data[moved] = bottleneck.codebook.data[moved]

    def validate(self, averages: dict[str, nn.Module]) -> dict[str, float]:
        autoencoder = averages["autoencoder"]
        bottleneck = autoencoder["bottleneck"]
        squared_errors, tokens, linear, means = [], [], LinearMap(), MeanImage()
        for indices in _validation_batches(len(self.validation)):
            images = _to_images(self.validation.images(indices), self.device)
            latents = bottleneck.encode(autoencoder["encoder"](images))
            z = bottleneck.decode(latents)
            squared_errors.append(_squared_error(autoencoder["decoder"](z), images))
            linear.add(z, images)
            means.add(images)
            if bottleneck.is_discrete:
                tokens.append(latents["tokens"].flatten())
        metrics = {"validation_psnr_db": _psnr_db(squared_errors).mean().item(), **_gains(means, linear, squared_errors)}
        if bottleneck.is_discrete:
            usage = usage_metrics(torch.bincount(torch.cat(tokens), minlength=bottleneck.num_codes))
            metrics |= {f"validation_{name}": value.item() for name, value in usage.items()}
        return metrics


class Stage2Objective:
    """The real decoder on latents read from disk: no encoder runs here (arXiv 2307.08283, section 4)."""

    averaged = ("decoder",)
    selection = None
    stops_on_alarm = False

    def __init__(self, params: SimpleNamespace, inputs: SimpleNamespace, device: torch.device):
        frozen = load_frozen(inputs.freeze).to(device)
        self.bottleneck, self.device = frozen.bottleneck, device
        self.examples = self._open_split(inputs, "train", frozen.sha256)
        self.validation = self._open_split(inputs, "validation", frozen.sha256)
        size = frozen.autoencoder_config.image_size
        self.config = autoencoder_config(params.autoencoder, size, frozen.bottleneck)
        self._require_memory(params.stage2)
        arm = params.arm.stage2
        self.latent_noise = arm.latent_noise
        decoder = _seeded(params.seed, "stage2 decoder", lambda: Decoder(self.config))
        if arm.start == "stage1":  # its weights alone: what has weakened it, such as dropout, ends with stage 1
            decoder.load_state_dict(load_decoder(inputs.stage1, frozen.sha256).state_dict())
        self.modules: dict[str, nn.Module] = {"decoder": _place(decoder, device)}
        self.paces = {"decoder": Pace(arm.learning_rate_factor), "discriminator": discriminator_pace(params.reconstruction_loss)}
        self.loss_terms = _build_loss(params, arm, params.stage2, size, self.modules, device)
        self.load_stage1_decoder = partial(load_decoder, inputs.stage1, frozen.sha256)
        calm = partial(unstable, loss="pixel", advice=f"halve stage2.learning_rate, or {LESS_ADVERSARIAL}")
        # With noise it learns to be worse on clean latents, and better on others.
        learns = partial(idle_discriminator, discriminator_start=self.loss_terms.discriminator_start)
        self.detectors = (*(() if arm.latent_noise else (idle_stage2,)), calm, learns)

    def _require_memory(self, optimization: Optimization) -> None:
        side = self.examples.latents.grid[0]
        shape = examples_at_once(optimization), self.config.latent_channels, side, side
        num_activations = shape[0] * self.config.channels * (self.config.image_size // self.config.patch_size) ** 2
        advice = "stage2.batch_size or autoencoder.channels, or raise stage2.num_microbatches"
        build, run = lambda: Decoder(self.config), lambda decoder: decoder(_empty(*shape))
        require_memory("the decoder", build, run, num_activations, optimization, self.device, advice)

    @staticmethod
    def _open_split(inputs: SimpleNamespace, split: str, frozen_sha256: str) -> LatentExamples:
        return LatentExamples(ShardDataset(inputs.shards, split), LatentDataset(inputs.encode, split, frozen_sha256))

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = _to_images(batch.pop("images"), self.device)
        decoder = self.modules["decoder"]
        z = self.bottleneck.decode(batch if self.bottleneck.is_discrete else {"mean": self._draw(**batch)})
        reconstruction = decoder(_with_noise(z, batch.get("tokens"), self.bottleneck, self.latent_noise))
        return self.loss_terms(reconstruction, images, decoder.last_layer, step)

    def end_step(self, averages: dict[str, nn.Module]) -> None:
        """Nothing but gradients changes a decoder, and the bottleneck is frozen."""

    @staticmethod
    def _draw(mean: Tensor, logvar: Tensor) -> Tensor:
        """A sample of continuous latents, as stage 1's decoder saw them."""
        return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)  # (B, D, h, w)

    def validate(self, averages: dict[str, nn.Module]) -> dict[str, float]:
        psnr = self._psnr_of(averages["decoder"])
        gain = psnr - self._stage1_psnr  # (N,), paired by image
        metrics = {GAIN_OVER_STAGE1.name: gain.mean().item()}
        if len(gain) > 1:
            metrics[GAIN_ERROR.name] = (gain.std() / math.sqrt(len(gain))).item()
        return {"validation_psnr_db": psnr.mean().item(), **{f"validation_{name}": value for name, value in metrics.items()}}

    @cached_property
    def _stage1_psnr(self) -> Tensor:
        return self._psnr_of(_place(self.load_stage1_decoder(), self.device).eval())

    def _psnr_of(self, decoder: nn.Module) -> Tensor:
        """Of each validation image, (N,)."""
        squared_errors = []
        for indices in _validation_batches(len(self.validation)):
            batch = {name: tensor.to(self.device) for name, tensor in self.validation.batch(indices).items()}
            images = _to_images(batch.pop("images"), self.device)
            squared_errors.append(_squared_error(decoder(self.bottleneck.decode(batch)), images))
        return _psnr_db(squared_errors)


def autoencoder_config(settings: Autoencoder, image_size: int, bottleneck: nn.Module, arm: ArmStage1 | None = None) -> AutoencoderConfig:
    """The shape of an autoencoder around a bottleneck.

    Args:
        arm: what weakens the decoder; None: nothing does.
    """
    return AutoencoderConfig(
        image_size=image_size,
        patch_size=settings.patch_size,
        channels=settings.channels,
        channel_multipliers=tuple(settings.channel_multipliers),
        num_res_blocks=settings.num_res_blocks,
        attention_resolutions=tuple(settings.attention_resolutions),
        encoder_channels_out=bottleneck.encoder_channels,
        latent_channels=bottleneck.latent_channels,
        decoder_channels=max(1, round(settings.channels * arm.channels_multiplier)) if arm else settings.channels,
        encoder_dropout=settings.dropout,
        decoder_dropout=max(arm.dropout, settings.dropout) if arm else settings.dropout,
        decoder_block_dropout=arm.block_dropout if arm else 0.0,
    )


def discriminator_pace(settings: ReconstructionLoss) -> Pace:
    """A rate of its own in every arm and stage: it starts anew when the autoencoder's rate has nearly decayed."""
    return Pace(constant_rate=settings.discriminator_learning_rate, betas=tuple(settings.discriminator_betas))


def examples_at_once(optimization: Optimization) -> int:
    """Of a batch, what one worker computes in one part; at the least, where the machine decides how many there are."""
    num_ray_workers = optimization.batch_size if optimization.num_ray_workers == "auto" else max(1, optimization.num_ray_workers)
    return max(1, optimization.batch_size // (optimization.num_microbatches * num_ray_workers))


def bottleneck_config(settings: Bottleneck, arm: ArmStage1) -> dict:
    """The config from which models.bottleneck.build_bottleneck rebuilds the arm's bottleneck."""
    return settings.model_dump() | (arm.bottleneck or {})


def _with_noise(z: Tensor, tokens: Tensor | None, bottleneck: nn.Module, noise: LatentNoise) -> Tensor:
    return disturb(z, tokens, bottleneck, noise.kind, noise.strength) if noise else z


def _build_loss(
    params: SimpleNamespace,
    stage: ArmStage1 | ArmStage2,
    optimization: Optimization,
    image_size: int,
    modules: dict[str, nn.Module],
    device: torch.device,
) -> AutoencoderLoss:
    settings = params.reconstruction_loss
    if stage.num_adversarial_steps:
        build = partial(PatchDiscriminator, settings.discriminator_channels, settings.discriminator_num_layers)
        _require_memory_of_discriminator(build, settings.discriminator_channels, optimization, image_size, device)
        modules["discriminator"] = _place(_seeded(params.seed, "discriminator", build), device)
    return AutoencoderLoss(settings, stage, modules.get("discriminator"), device)


def _require_memory_of_discriminator(
    build: Callable[[], nn.Module], channels: int, optimization: Optimization, image_size: int, device: torch.device
) -> None:
    shape = examples_at_once(optimization), 3, image_size, image_size
    num_activations = shape[0] * channels * (image_size // 2) ** 2
    advice = "reconstruction_loss.discriminator_channels or the stage's batch_size, or raise its num_microbatches"
    unaveraged = optimization.model_copy(update={"ema_decay": 0.0})
    require_memory("the discriminator", build, lambda network: network(_empty(*shape)), num_activations, unaveraged, device, advice)


def _seeded(seed: int, name: str, build) -> nn.Module:
    """Build a module from its own seed: both arms start from the same encoder, whatever else they build before it."""
    torch.manual_seed(derive_seed(seed, "init", name))
    return build()


def _place(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device, memory_format=torch.channels_last)


def _empty(*shape: int) -> Tensor:
    """Strides as in training: of others, attention keeps a matrix of all pairs of positions."""
    return torch.empty(shape, memory_format=torch.channels_last)


def _to_images(images: Tensor, device: torch.device) -> Tensor:
    return from_uint8(images.to(device)).contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)


def _validation_batches(num_images: int) -> list[range]:
    stop = min(num_images, MAX_VALIDATION_IMAGES)
    return [range(start, min(start + VALIDATION_BATCH_SIZE, stop)) for start in range(0, stop, VALIDATION_BATCH_SIZE)]


def _squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    return (reconstruction.clamp(-1, 1).float() - images).square().mean(dim=(1, 2, 3))  # (B,)


def _gains(means: MeanImage, linear: LinearMap, squared_errors: list[Tensor]) -> dict[str, float]:
    """Of a decoder over the two, on the images that they are measured on; none where there is only one image."""
    ours = torch.cat([errors[1::2] for errors in squared_errors]).double().mean().item()
    errors = {GAIN_OVER_MEAN.name: means.squared_error(), GAIN_OVER_LINEAR.name: linear.squared_error()}
    return {
        f"validation_{name}": 10 * math.log10(max(error, 1e-10) / max(ours, 1e-10)) for name, error in errors.items() if error is not None
    }


def _psnr_db(squared_errors: list[Tensor]) -> Tensor:
    """Peak signal-to-noise ratio of each image, (N,); the peak-to-peak range of [-1, 1] is 2."""
    return 10 * torch.log10(4 / torch.cat(squared_errors).double().clamp(min=1e-10))
