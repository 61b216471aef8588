"""The freeze contract: one encoder and bottleneck, named by a content hash, with a probe that proves what they do.

Everything downstream of the freeze stage carries this hash and refuses to work with another.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from errors import PipelineError
from models.autoencoder import AutoencoderConfig, Encoder, from_uint8
from models.bottleneck import build_bottleneck
from storage.files import read_json, require_format, write_json
from storage.weights import build_from, content_sha256, load_into, load_weights, save_weights

FORMAT = "dae-frozen-1"
PROBE_FORMAT = "dae-probe-1"
# Another machine's arithmetic may move a latent across a boundary between two codes; another encoder moves most of them.
MIN_PROBE_AGREEMENT = 0.99
MAX_PROBE_ERROR = 0.01  # of a continuous latent, in standard deviations of the probe's


class OfEncoder(BaseModel):
    """What every record downstream of the frozen encoder holds."""

    frozen_sha256: str


class EncoderRecord(BaseModel):
    """What config.json holds."""

    format: str
    sha256: str
    autoencoder: dict
    bottleneck: dict


class ProbeRecord(BaseModel):
    """What probe.json holds."""

    format: str
    weights_sha256: str


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder and bottleneck, ready for inference.

    It pickles as its folder: whoever unpickles it, a Ray task on another node, checks hash and probe there.

    Attributes:
        config: rebuilds both, as read from config.json.
        sha256: identifies config and weights.
    """

    encoder: nn.Module
    bottleneck: nn.Module
    config: dict
    sha256: str
    folder: Path

    def __reduce__(self) -> tuple:
        return load_frozen, (self.folder,)

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        return AutoencoderConfig(**self.config["autoencoder"])

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Bytes of images (B, 3, H, W) to latents."""
        return self.bottleneck.encode(self.encoder(from_uint8(images)))

    def require(self, sha256: str, where: str) -> None:
        """Refuse what was made with another encoder.

        Raises:
            PipelineError: naming both hashes and where the other one was found.
        """
        if sha256 != self.sha256:
            raise PipelineError(
                f"{where} was made with frozen encoder {sha256[:16]}, but the frozen encoder here is {self.sha256[:16]}; "
                "they do not belong together: run dvc repro to remake what is stale"
            )

    def to(self, device: torch.device) -> "Frozen":
        self.encoder.to(device, memory_format=torch.channels_last)
        self.bottleneck.to(device)
        return self


def encoder_config(autoencoder: AutoencoderConfig, bottleneck: dict) -> dict:
    """The config of what gets frozen: the decoder's own settings are left out, so that they do not change the hash."""
    shared = {**asdict(autoencoder), "decoder_channels": autoencoder.channels, "decoder_dropout": 0.0, "decoder_block_dropout": 0.0}
    return {"autoencoder": shared, "bottleneck": bottleneck}


def frozen_sha256(config: dict, encoder: nn.Module, bottleneck: nn.Module) -> str:
    """The hash that names an encoder and bottleneck with this config."""
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors |= {f"bottleneck.{name}": tensor for name, tensor in bottleneck.state_dict().items()}
    return content_sha256(config, tensors)


def save_encoder(folder: Path, config: dict, encoder: nn.Module, bottleneck: nn.Module) -> str:
    """Write encoder, bottleneck and config; return their hash."""
    save_weights(folder / "encoder.safetensors", encoder.state_dict())
    save_weights(folder / "bottleneck.safetensors", bottleneck.state_dict())
    sha256 = frozen_sha256(config, encoder, bottleneck)
    write_json(folder / "config.json", {"format": FORMAT, "sha256": sha256, **config})
    return sha256


def save_probe(folder: Path, images: Tensor, latents: dict[str, Tensor]) -> None:
    """Write a few images (bytes) and the latents they must encode to, as probe.safetensors and probe.json."""
    sha256 = save_weights(folder / "probe.safetensors", {"images": images, **latents})
    write_json(folder / "probe.json", {"format": PROBE_FORMAT, "weights_sha256": sha256})


def load_encoder(folder: Path) -> Frozen:
    """Read encoder and bottleneck and check them against their recorded hash.

    Raises:
        PipelineError: when the files are damaged or the hash is not theirs.
    """
    path = folder / "config.json"
    config = read_json(path, EncoderRecord)
    require_format(path, config.pop("format"), FORMAT, "an encoder")
    recorded = config.pop("sha256")
    encoder = build_from(path, lambda shape: Encoder(AutoencoderConfig(**shape)), config["autoencoder"])
    bottleneck = build_from(path, build_bottleneck, config["bottleneck"])
    load_into(encoder, folder / "encoder.safetensors")
    load_into(bottleneck, folder / "bottleneck.safetensors")
    actual = frozen_sha256(config, encoder, bottleneck)
    frozen = Frozen(encoder, bottleneck, config, actual, Path(folder).resolve())
    frozen.require(recorded, f"{folder}: config.json says its weights' hash; what they hold")
    return frozen


def load_frozen(folder: Path) -> Frozen:
    """Read what the freeze stage wrote and check hash and probe.

    Raises:
        PipelineError: when the weights' hash is not the recorded one, a file is damaged or in another format, or the probe is of another
            kind or encodes to other latents.
    """
    frozen = load_encoder(folder)
    record = read_json(folder / "probe.json", ProbeRecord)
    require_format(folder / "probe.json", record["format"], PROBE_FORMAT, "a probe", "dvc repro freeze")
    probe = load_weights(folder / "probe.safetensors", record["weights_sha256"])
    images, size = probe.pop("images", torch.empty(0)), frozen.autoencoder_config.image_size
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size) or not len(images):
        raise PipelineError(f"{folder}: its probe has no images of this encoder's {size} pixels; run dvc repro freeze to remake it")
    latents = frozen.encode(images)
    made, held = ({name: tuple(values.shape) for name, values in sorted(tree.items())} for tree in (latents, probe))
    if made != held:
        raise PipelineError(f"{folder}: its probe has {held}, this encoder makes {made} of its images; run dvc repro freeze to remake it")
    for name, expected in sorted(probe.items()):
        agreement = _agree(latents[name], expected).double().mean().item()
        if agreement < MIN_PROBE_AGREEMENT:
            raise PipelineError(
                f"{folder}: only {agreement:.1%} of the probe's {name} come out as recorded; this encoder is not the one that "
                "was frozen, or this machine computes differently: run dvc repro freeze, and what follows it, on this machine"
            )
    return frozen


def _agree(values: Tensor, expected: Tensor) -> Tensor:
    """Which tokens are the same, or which continuous latents are nearly so: a GPU rounds otherwise than a CPU."""
    if not expected.is_floating_point():
        return values == expected
    return (values - expected).abs() <= MAX_PROBE_ERROR * (1e-3 + expected.std())
