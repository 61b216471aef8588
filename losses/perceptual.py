"""Perceptual distances for training: how differently a pretrained network sees a reconstruction and its target.

Differences of unit-normalised channel vectors, as in LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", 2018), over EfficientNet-Lite0 (offline) or over VGG-16 with LPIPS's calibration.
"""

import warnings
from pathlib import Path

import torch
from torch import nn

from errors import PipelineError
from evaluation.efficientnet import load_stages

# After the stem and blocks 0, 2 and 4: at 32 px 16x16, 16x16, 8x8 and 4x4 positions; what follows sees the image as a whole.
# Without the stem, an image fitted by this distance alone gets a checkerboard (its stride is 2) and loses 2 dB.
EFFICIENTNET_LAYERS = (0, 1, 3, 5)
VGG_FILE = "vgg16-397923af.pth"
PATH_KEY = "reconstruction_loss.perceptual_weights_path"
ALTERNATIVE = "set reconstruction_loss.perceptual to efficientnet-lite0, which needs no download"
EPSILON = 1e-6


def build_perceptual(name: str, weights_path: str | None) -> nn.Module | None:
    """Build a perceptual distance.

    Args:
        name: ``"efficientnet-lite0"``, ``"lpips"`` or ``"none"``.
        weights_path: lpips only: torchvision's VGG-16 weights; None: torchvision's own download.

    Returns:
        a frozen module ``(reconstruction, target) -> (B,)``, both (B, 3, H, W) in [-1, 1], distances in fp32; it passes
        gradients to the reconstruction alone and stays in eval mode. None for ``"none"``.

    Raises:
        PipelineError: when the weights cannot be found, read or downloaded.
    """
    if name == "none":
        return None
    with torch.random.fork_rng(devices=[]):  # building a network draws initial weights; training's random numbers stay where they were
        return EfficientNetDistance() if name == "efficientnet-lite0" else LPIPSDistance(weights_path)


class FrozenDistance(nn.Module):
    """What both distances share: they cannot be put in training mode, and compute in fp32 inside an autocast region."""

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.autocast(reconstruction.device.type, enabled=False):
            return self.distance(reconstruction.float(), target.detach().float())


class EfficientNetDistance(FrozenDistance):
    """Squared distance of unit-normalised EfficientNet-Lite0 features, averaged over positions and layers: in [0, 4]."""

    def __init__(self):
        super().__init__()
        self.stages = load_stages()[: EFFICIENTNET_LAYERS[-1] + 1]
        self.eval()

    def distance(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target_features = self.features(target)
        total = torch.zeros(reconstruction.shape[0], device=reconstruction.device)
        for ours, theirs in zip(self.features(reconstruction), target_features, strict=True):
            total = total + (ours - theirs).square().sum(1).mean((1, 2))  # (B, C, H, W) -> (B,)
        return total / len(EFFICIENTNET_LAYERS)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, 3, H, W) -> one (B, C, H', W') per layer, of length 1 along C."""
        features = []
        x = images.contiguous(memory_format=torch.channels_last)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in EFFICIENTNET_LAYERS:
                # epsilon inside the root: the gradient stays finite where all channels are zero
                features.append(x * (x.square().sum(1, keepdim=True) + EPSILON).rsqrt())
        return features


class LPIPSDistance(FrozenDistance):
    """LPIPS with VGG-16, version 0.1, by its authors' package. Images need at least 16 pixels a side."""

    def __init__(self, weights_path: str | None):
        super().__init__()
        weights = _read_vgg(Path(weights_path).expanduser()) if weights_path else _download_vgg()
        import lpips  # here, not above: it takes a second, and the default distance does not need it

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision by a deprecated keyword
            self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)  # pnet_rand: no download yet, weights come next
        try:  # lpips names parameters slice<k>.<layer>.<kind>, torchvision features.<layer>.<kind>
            names = self.lpips.net.state_dict()
            self.lpips.net.load_state_dict({name: weights["features." + name.split(".", 1)[1]] for name in names})
        except (KeyError, RuntimeError, TypeError):
            raise PipelineError(f"{PATH_KEY}: {weights_path} does not hold VGG-16; it must be torchvision's {VGG_FILE}") from None
        self.requires_grad_(False).eval()

    def distance(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.lpips(reconstruction, target).flatten()  # (B, 1, 1, 1) -> (B,)


def _read_vgg(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PipelineError(f"{PATH_KEY}: {path}: {error.strerror}; put torchvision's {VGG_FILE} there, or {ALTERNATIVE}") from None
    except Exception:  # whatever the restricted unpickler comes to when a file holds something else
        raise PipelineError(f"{PATH_KEY}: {path} is not a readable weights file; get torchvision's {VGG_FILE} again") from None


def _download_vgg() -> dict[str, torch.Tensor]:
    from torchvision.models import VGG16_Weights

    try:
        return torch.hub.load_state_dict_from_url(VGG16_Weights.IMAGENET1K_V1.url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise PipelineError(
            f"reconstruction_loss.perceptual: lpips needs torchvision's {VGG_FILE} and its download failed ({error}); "
            f"copy that file here and name it in {PATH_KEY}, or {ALTERNATIVE}"
        ) from None
