"""Small networks for the tests of what is stored of them."""

import torch
from torch import nn

from models.autoencoder import AutoencoderConfig, Decoder, Encoder
from models.bottleneck import build_bottleneck
from storage.frozen import encoder_config, save_encoder, save_probe

AUTOENCODER = AutoencoderConfig(
    image_size=16,
    patch_size=2,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    encoder_channels_out=4,
    latent_channels=4,
    decoder_channels=8,
    encoder_dropout=0.0,
    decoder_dropout=0.5,
)
BOTTLENECK = {"kind": "vq", "num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 50}


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """An untrained encoder, bottleneck and decoder."""
    torch.manual_seed(seed)
    parts = {"encoder": Encoder(AUTOENCODER), "bottleneck": build_bottleneck(BOTTLENECK), "decoder": Decoder(AUTOENCODER)}
    return {name: part.eval() for name, part in parts.items()}


def images(num_images: int = 6, seed: int = 0) -> torch.Tensor:
    """Noise as bytes, (B, 3, 16, 16)."""
    return torch.randint(256, (num_images, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_frozen(folder, seed: int = 0) -> str:
    """What the freeze stage writes; returns the hash."""
    parts = networks(seed)
    sha256 = save_encoder(folder, encoder_config(AUTOENCODER, BOTTLENECK), parts["encoder"], parts["bottleneck"])
    with torch.no_grad():
        tokens = parts["bottleneck"].encode(parts["encoder"](images().float() / 127.5 - 1))
    save_probe(folder, images(), tokens)
    return sha256
