"""How close decoded images are to their originals, image by image."""

import torch
from torch import Tensor

MAX_PSNR_DB = 100.0  # of identical images, whose PSNR is infinite; one byte off by one in a 32 px image gives 83 dB


def psnr_db(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, on bytes: uint8 (B, 3, H, W) twice to (B,) float64.

    The peak is 255 and the error is averaged over all pixels and channels of one image. What is reported over many
    images is the mean of these, not the PSNR of their mean error.
    """
    error = (images.double() - originals.double()).square().mean((1, 2, 3))  # (B,)
    return (10 * torch.log10(255**2 / error)).clamp(max=MAX_PSNR_DB)
