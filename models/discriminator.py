"""PatchGAN discriminator (Isola et al. 2017, arXiv 1611.07004)."""

from torch import Tensor, nn

from models.autoencoder import group_norm


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to one logit per overlapping patch (B, 1, H', W'), high for real.

    GroupNorm in place of the original BatchNorm: an image's logits do not depend on the rest of its batch.

    Args:
        channels: width of the first layer; doubles per layer, eightfold at most.
        num_layers: strided layers; each halves the resolution.
    """

    def __init__(self, channels: int, num_layers: int):
        super().__init__()
        widths = [channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                group_norm(widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_init)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # (B, 1, H', W')


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
