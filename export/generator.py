"""A trained image generator, loaded and sampled with torch and safetensors alone.

    import sys; sys.path.insert(0, "FOLDER")
    from generator import load
    images = load().sample(16, seed=0)  # uint8 (16, 3, H, W)

``python -m export`` carries this file along as ``generator/__init__.py``, beside the model code that it imports.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.autoencoder import AutoencoderConfig, Decoder, Encoder, from_uint8, to_uint8
from models.bottleneck import build_bottleneck
from models.priors import SAMPLERS, build_prior, generate
from training.randomness import RowRandomness, draw_labels, whole_batches

MIN_TEMPERATURE, MAX_FACTOR = 1e-6, 1e6  # beyond, fp32 overflows; what comes out then looks like an image and is none
# As kinds.py has them for params.yaml, which does not come along.
ALLOWED = {
    "sampler": (lambda value: value in SAMPLERS, f"one of {', '.join(SAMPLERS)}, as far as it fits the prior"),
    "temperature": (lambda value: is_number(value) and value >= MIN_TEMPERATURE, f"a number from {MIN_TEMPERATURE} on"),
    "top_k": (lambda value: value is None or (is_integer(value) and value > 0), "a whole number above 0, or None"),
    "top_p": (lambda value: value is None or (is_number(value) and 0 < value <= 1), "a number above 0 and up to 1, or None"),
    "guidance_scale": (lambda value: is_number(value) and 0 <= value <= MAX_FACTOR, f"a number from 0 to {MAX_FACTOR:.0f}"),
    "guidance_interval": (
        lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value)) and 0 <= value[0] <= value[1] <= 1,
        "two rising numbers from 0 to 1",
    ),
    "num_steps": (lambda value: is_integer(value) and value > 0, "a whole number above 0"),
    "choice_temperature": (lambda value: is_number(value) and 0 <= value <= MAX_FACTOR, f"a number from 0 to {MAX_FACTOR:.0f}"),
    "churn": (lambda value: is_number(value) and 0 <= value <= MAX_FACTOR, f"a number from 0 to {MAX_FACTOR:.0f}"),
}
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
        batch_size: int = 16,
        **settings,
    ) -> Tensor:
        """Draw images ``first``, ``first + 1``, ... of a seed; each depends on seed and its own index alone.

        Args:
            labels: one per image, as a number or a name of ``classes``; by default as frequent as in the training data.
            batch_size: images computed at once. Batches are always whole, so a small size saves time when few images are wanted. With
                the sample stage's batch size an image is bit-identical to that stage's, with another equal up to rounding.
            settings: replace entries of ``settings``, such as ``guidance_scale=2.0``.

        Returns:
            uint8 (num_images, 3, H, W), on the CPU.

        Raises:
            ValueError: when an argument or a setting is not one of those allowed, or a label or their number is wrong.
            TypeError: for a setting that this generator's sampler does not have.
        """
        self._check(settings, num_images=(num_images, 0), seed=(seed, 0), first=(first, 0), batch_size=(batch_size, 1))
        num_images, seed, first, batch_size = map(int, (num_images, seed, first, batch_size))  # numpy's would overflow
        indices = range(first, first + num_images)
        given = None if labels is None else self._check_labels(labels, num_images)  # (N,)
        batches = [torch.empty(0, 3, self.config["image_size"], self.config["image_size"], dtype=torch.uint8)]
        for rows, wanted in whole_batches(indices, batch_size):
            numbers = self.draw_labels(rows, seed)  # (B,)
            if given is not None:
                numbers[wanted] = given[rows.start + wanted.start - first :][: wanted.stop - wanted.start]
            random = RowRandomness(rows, seed, "sample", self.device)
            latents = generate(self.prior, numbers.to(self.device), random, self.settings | settings)
            batches.append(self.decode(latents).cpu()[wanted])  # (B, 3, H, W)
        return torch.cat(batches)

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Images, uint8 (B, 3, H, W), to the latents that the prior models.

        Raises:
            ValueError: for images of another shape or type.
        """
        size = self.config["image_size"]
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be uint8 (B, 3, {size}, {size}), a tensor of torch, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or images.dtype != torch.uint8 or not len(images):
            raise ValueError(f"images must be uint8 (B, 3, {size}, {size}), got {str(images.dtype)[6:]} {tuple(images.shape)}")
        return self.bottleneck.encode(self.encoder(from_uint8(images.to(self.device))))

    @torch.no_grad()
    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """Latents, as ``encode`` gives them, to images, uint8 (B, 3, H, W).

        Raises:
            ValueError: for latents of another kind or shape, tokens that are no code's, or numbers that are not finite.
        """
        name = "tokens" if self.bottleneck.is_discrete else "mean"
        self._check_latents(latents, name)
        tensor = latents[name].to(self.device)
        tensor = tensor.long() if self.bottleneck.is_discrete else tensor.float()
        return to_uint8(self.decoder(self.bottleneck.decode({name: tensor})))

    def draw_labels(self, indices: range, seed: int = 0) -> Tensor:
        """The labels that ``sample`` gives the images with these indices by default: (N,) int64.

        They are as frequent as in the training data; without classes, each is the prior's label for none.
        """
        return draw_labels(indices, self.config["label_counts"], seed)

    def _check(self, settings: dict, **counts: tuple[int, int]) -> None:
        for name, (value, least) in counts.items():
            if not is_integer(value) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")
        unknown = sorted(settings.keys() - self.settings.keys())
        if unknown:
            raise TypeError(f"no setting {unknown[0]!r}; this generator's sampler has: {', '.join(sorted(self.settings))}")
        for name, value in settings.items():
            is_allowed, allowed = ALLOWED[name]
            if not is_allowed(value):
                raise ValueError(f"{name} must be {allowed}, got {value!r}")
        if settings.get("guidance_scale", 1) != 1 and not self.classes:
            raise ValueError("guidance_scale other than 1 needs classes, and this generator is not class-conditional")

    def _check_latents(self, latents: dict[str, Tensor], name: str) -> None:
        prior, size = self.config["prior"], self.config["prior"]["latent_size"]
        shape = (size, size) if self.bottleneck.is_discrete else (prior["latent_channels"], size, size)
        given = latents if isinstance(latents, Mapping) else {}
        tensors = {key: tensor for key, tensor in given.items() if isinstance(tensor, Tensor)}
        if name not in tensors or tensors[name].ndim != len(shape) + 1 or tensors[name].shape[1:] != shape:
            found = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors.items())
            raise ValueError(f"latents must have {name} (B, {', '.join(map(str, shape))}), a tensor of torch, got {found or 'nothing'}")
        values = tensors[name]
        if not self.bottleneck.is_discrete:
            if not values.is_floating_point() or not values.isfinite().all():
                raise ValueError("latents are not finite numbers; if they were sampled, lower guidance_scale")
            return
        is_whole = not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool
        if not is_whole or (values.numel() and not 0 <= values.min() <= values.max() < prior["num_codes"]):
            raise ValueError(f"tokens must be whole numbers from 0 to {prior['num_codes'] - 1}")

    def _check_labels(self, labels: Sequence[int | str], num_images: int) -> Tensor:
        if not self.classes:
            raise ValueError("labels were given, but this generator is not class-conditional")
        labels = labels.tolist() if hasattr(labels, "tolist") else labels  # tensors and arrays
        if not isinstance(labels, Sequence) or isinstance(labels, str):
            raise ValueError(f"labels must be a list with a number or a name for each image, got {labels!r}")
        if len(labels) != num_images:
            raise ValueError(f"{len(labels)} labels were given for {num_images} images")
        known = {name: number for number, name in enumerate(self.classes)} | {number: number for number in range(len(self.classes))}
        wrong = [label for label in labels if not (isinstance(label, str) or is_integer(label)) or label not in known]
        if wrong:
            raise ValueError(f"no class {wrong[0]!r}; ``classes`` names the {len(self.classes)} there are")
        return torch.tensor([known[label] for label in labels], dtype=torch.int64)


def is_number(value) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


def is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
