"""A trained image generator, loaded and sampled with torch and safetensors alone.

    import sys; sys.path.insert(0, "FOLDER")
    from generator import load
    images = load().sample(16, seed=0)  # uint8 (16, 3, H, W)

``python -m export`` carries this file along as ``generator/__init__.py``, beside the model code that it imports.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.autoencoder import AutoencoderConfig, Decoder, Encoder, from_uint8, to_uint8
from models.bottleneck import build_bottleneck
from models.priors import build_prior, generate
from training.randomness import RowRandomness, draw_labels

PARTS = ("encoder", "bottleneck", "decoder", "prior")


def load(device: str | torch.device = "cpu") -> "Generator":
    """The generator of the folder that holds this code.

    Raises:
        ValueError: when a file of weights is not the one that was exported.
    """
    return Generator(Path(__file__).resolve().parent.parent, device)


class Generator:
    """Encoder, bottleneck, decoder and prior of one run, ready for inference.

    Attributes:
        config: everything in config.json: shapes, where it comes from, sampling settings.
        classes: names of the labels; empty when the generator is not class-conditional.
        settings: the sampler's settings, which ``sample`` takes unless told otherwise.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        self.config = json.loads((folder / "config.json").read_text())
        self.classes: list[str] = self.config["classes"]
        self.settings: dict = self.config["sampling"]
        self.device = torch.device(device)
        self.encoder = Encoder(AutoencoderConfig(**self.config["encoder"]))
        self.bottleneck = build_bottleneck(self.config["bottleneck"])
        self.decoder = Decoder(AutoencoderConfig(**self.config["decoder"]))
        self.prior = build_prior(self.config["prior"])
        for name in PARTS:
            self._fill(name, getattr(self, name), folder / f"{name}.safetensors")
        self.encoder.to(memory_format=torch.channels_last)
        self.decoder.to(memory_format=torch.channels_last)

    def _fill(self, name: str, module: nn.Module, path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.config["weights_sha256"][name]:
            raise ValueError(f"{path}: not the weights that were exported (SHA-256 differs from config.json); copy the folder again")
        module.load_state_dict(load_file(path))
        module.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        seed: int = 0,
        *,
        first: int = 0,
        labels: Sequence[int | str] | None = None,
        batch_size: int = 64,
        **settings,
    ) -> Tensor:
        """Draw images ``first``, ``first + 1``, ... of a seed; each depends on seed and its own index, not on its batch.

        Args:
            labels: one per image, as a number or a name of ``classes``; by default as frequent as in the training data.
            settings: replace entries of ``settings``, such as ``guidance_scale=2.0``.

        Returns:
            uint8 (num_images, 3, H, W), on the CPU.

        Raises:
            ValueError: when a label or their number is wrong.
            TypeError: for a setting that this generator's sampler does not have.
        """
        unknown = sorted(settings.keys() - self.settings.keys())
        if unknown:
            raise TypeError(f"no setting {unknown[0]!r}; this generator's sampler has: {', '.join(sorted(self.settings))}")
        indices = range(first, first + num_images)
        numbers = self.draw_labels(indices, seed) if labels is None else self._check_labels(labels, num_images)  # (N,)
        batches = [torch.empty(0, 3, self.config["image_size"], self.config["image_size"], dtype=torch.uint8)]
        for start in range(0, num_images, batch_size):
            rows = indices[start : start + batch_size]
            random = RowRandomness(rows, seed, "sample", self.device)
            given = numbers[start : start + batch_size].to(self.device)  # (B,)
            latents = generate(self.prior, given, random, self.settings | settings)
            batches.append(self.decode(latents).cpu())  # (B, 3, H, W)
        return torch.cat(batches)

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Images, uint8 (B, 3, H, W), to the latents that the prior models."""
        return self.bottleneck.encode(self.encoder(from_uint8(images.to(self.device))))

    @torch.no_grad()
    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """Latents to images, uint8 (B, 3, H, W)."""
        latents = {name: tensor.to(self.device) for name, tensor in latents.items()}
        return to_uint8(self.decoder(self.bottleneck.decode(latents)))

    def draw_labels(self, indices: range, seed: int = 0) -> Tensor:
        """The labels that ``sample`` gives the images with these indices by default: (N,) int64.

        They are as frequent as in the training data; without classes, each is the prior's label for none.
        """
        return draw_labels(indices, self.config["label_counts"], seed)

    def _check_labels(self, labels: Sequence[int | str], num_images: int) -> Tensor:
        if not self.classes:
            raise ValueError("labels were given, but this generator is not class-conditional")
        if len(labels) != num_images:
            raise ValueError(f"{len(labels)} labels were given for {num_images} images")
        known = {name: number for number, name in enumerate(self.classes)} | {number: number for number in range(len(self.classes))}
        wrong = [label for label in labels if label not in known]
        if wrong:
            raise ValueError(f"no class {wrong[0]!r}; ``classes`` names the {len(self.classes)} there are")
        return torch.tensor([known[label] for label in labels], dtype=torch.int64)
