"""Feature extractors that distances between sets of images are computed on, as torch-fidelity's.

Importing this module registers EfficientNet-Lite0 with torch-fidelity, whose own functions then take it by name too.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from errors import PipelineError
from evaluation import efficientnet
from storage.files import sha256_file

EFFICIENTNET = "efficientnet-lite0"
INCEPTION = "inception-v3-compat"
LABELS = {EFFICIENTNET: "EfficientNet-Lite0"}  # Inception's is implied by the names of its metrics
INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[1]
MIN_INPUT_SIZE = 64  # of EfficientNet-Lite0: below, its last map is 1x1 and 97% of the features are 0 whatever the image
PATH_KEY = "evaluation.extractor_weights_path"


class FeatureExtractorEfficientNetLite0(FeatureExtractorBase):
    """ImageNet features for uint8 images of any size: the spatial mean of the last convolution, ``"1280"``.

    Images are resized to ``input_size`` squared, bicubic and antialiased (it matters when shrinking), clamped to
    [0, 255], and scaled to [-1, 1].
    """

    RESIZE_FILTER = "bicubic, antialiased (torch)"
    LAYER = str(efficientnet.NUM_FEATURES)

    def __init__(self, name: str, features_list: list[str], input_size: int = 224, **_):
        super().__init__(name, features_list)
        self.input_size = input_size
        self.stages = efficientnet.load_stages()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        x = images.float().contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)
        if x.shape[-2:] != (self.input_size, self.input_size):
            x = F.interpolate(x, (self.input_size, self.input_size), mode="bicubic", antialias=True).clamp_(0, 255)
        x = x / 127.5 - 1
        for stage in self.stages:
            x = stage(x)
        return (x.mean((2, 3)),)  # (B, 1280)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (FeatureExtractorEfficientNetLite0.LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        layers = dict.fromkeys(("fid", "kid", "prc"), FeatureExtractorEfficientNetLite0.LAYER)
        return layers[metric]  # no Inception score: that needs Inception's classes

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        return torch.zeros((1, 3, 4, 4), dtype=torch.uint8)


register_feature_extractor(EFFICIENTNET, FeatureExtractorEfficientNetLite0)


@dataclass(frozen=True)
class Extractor:
    """A network with what must be known about it to compare numbers.

    Attributes:
        layers: of the network's outputs, in order: features, then class logits if it is Inception.
        input_size: pixels a side that images are resized to, with ``resize_filter``.
    """

    network: FeatureExtractorBase
    name: str
    layers: tuple[str, ...]
    weights_sha256: str
    input_size: int
    resize_filter: str
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 images (B, 3, H, W) to ``{"features": (B, D)}``, and ``"logits"`` (B, 1008) with Inception: fp32 on the CPU."""
        outputs = self.network(images.to(self.device))
        return dict(zip(("features", "logits"), (output.cpu() for output in outputs), strict=False))


def build_extractor(name: str, weights_path: str | None, input_size: int, device: torch.device) -> Extractor:
    """Build a feature extractor.

    Args:
        name: ``"efficientnet-lite0"`` or ``"inception-v3-compat"``.
        weights_path: Inception only: its weights; None: torch-fidelity's download.
        input_size: EfficientNet only: pixels a side it is fed; Inception always takes 299.

    Raises:
        PipelineError: when the weights cannot be found, read or downloaded, or input_size is too small.
    """
    if name == EFFICIENTNET and input_size < MIN_INPUT_SIZE:
        raise PipelineError(f"evaluation.input_size is {input_size}, and {EFFICIENTNET} sees nothing below {MIN_INPUT_SIZE}; raise it")
    if name == EFFICIENTNET:
        layers, weights = (FeatureExtractorEfficientNetLite0.LAYER,), efficientnet.weights_path()
        network = FeatureExtractorEfficientNetLite0(name, list(layers), input_size)
        resize_filter = FeatureExtractorEfficientNetLite0.RESIZE_FILTER
    else:
        layers, weights = ("2048", "logits_unbiased"), _inception_weights(weights_path)
        network = _build_inception(name, layers, weights)
        input_size, resize_filter = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE, "bilinear (tensorflow 1)"
    network.eval().requires_grad_(False).to(device)
    return Extractor(network, name, layers, sha256_file(weights), input_size, resize_filter, device)


def _inception_weights(weights_path: str | None) -> Path:
    if weights_path:
        path = Path(weights_path).expanduser()
        if not path.is_file():
            raise PipelineError(f"{PATH_KEY}: {path} does not exist; put torch-fidelity's {INCEPTION_FILE} there")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    try:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise PipelineError(
            f"evaluation.extractor: {INCEPTION} needs {INCEPTION_FILE} and its download failed ({error}); copy that file here and name it "
            f"in {PATH_KEY}, or set evaluation.extractor to {EFFICIENTNET}, which needs no download"
        ) from None
    return path


def _build_inception(name: str, layers: tuple[str, ...], weights: Path) -> FeatureExtractorInceptionV3:
    """torch-fidelity unpickles the file it is given, so it is given a copy of what was read without unpickling."""
    buffer = io.BytesIO()
    try:
        torch.save(torch.load(weights, map_location="cpu", weights_only=True), buffer)
        buffer.seek(0)
        with torch.random.fork_rng(devices=[]):  # building a network draws initial weights
            return FeatureExtractorInceptionV3(name, list(layers), feature_extractor_weights_path=buffer)
    except Exception:  # whatever the restricted unpickler or the network comes to when a file holds something else
        raise PipelineError(f"{PATH_KEY}: {weights} is not a readable file of Inception weights; get {INCEPTION_FILE} again") from None
