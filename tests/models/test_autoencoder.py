"""The autoencoder's shapes, its known size, and what its conversion to bytes does."""

import dataclasses

import pytest
import torch

from models.autoencoder import AutoencoderConfig, Decoder, Encoder, from_uint8, to_uint8

SMALL = AutoencoderConfig(
    image_size=16,
    patch_size=2,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    encoder_channels_out=6,
    latent_channels=6,
    decoder_channels=8,
    encoder_dropout=0.0,
    decoder_dropout=0.0,
)
TAMING_FACESHQ = AutoencoderConfig(
    image_size=256,
    patch_size=1,
    channels=128,
    channel_multipliers=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attention_resolutions=(16,),
    encoder_channels_out=256,
    latent_channels=256,
    decoder_channels=128,
    encoder_dropout=0.0,
    decoder_dropout=0.0,
)


def test_latents_and_images_have_the_promised_shapes():
    images = torch.randn(3, 3, 16, 16)
    latents = Encoder(SMALL)(images)
    assert latents.shape == (3, 6, SMALL.latent_size, SMALL.latent_size) == (3, 6, 4, 4)
    assert Decoder(SMALL)(latents).shape == images.shape
    gaussian = dataclasses.replace(SMALL, encoder_channels_out=12)
    assert Encoder(gaussian)(images).shape == (3, 12, 4, 4)
    assert Decoder(gaussian)(latents).shape == images.shape


def test_a_halved_decoder_has_about_a_quarter_of_the_parameters():
    full, weak = (sum(p.numel() for p in Decoder(c).parameters()) for c in (SMALL, dataclasses.replace(SMALL, decoder_channels=4)))
    assert 0.2 < weak / full < 0.35


def test_taming_faceshq_configuration_has_the_published_size():
    """VQGAN's FacesHQ autoencoder: 29.3 M encoder and 42.4 M decoder parameters, with the 1x1 convolutions around its codes."""
    with torch.device("meta"):
        encoder, decoder = Encoder(TAMING_FACESHQ), Decoder(TAMING_FACESHQ)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(29.3e6, rel=0.02)
    assert sum(p.numel() for p in decoder.parameters()) == pytest.approx(42.4e6, rel=0.02)
    assert TAMING_FACESHQ.latent_size == 16


def test_dropout_acts_in_training_only():
    decoder = Decoder(dataclasses.replace(SMALL, decoder_dropout=0.5))
    latents = torch.randn(1, 6, 4, 4)
    assert not torch.equal(decoder(latents), decoder(latents))
    decoder.eval()
    assert torch.equal(decoder(latents), decoder(latents))


def test_bytes_survive_the_round_trip_through_floats():
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(every_byte)), every_byte)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
