"""Decoders on disk, each tied to the one frozen encoder whose latents it reads."""

from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel
from torch import nn

from errors import PipelineError
from models.autoencoder import AutoencoderConfig, Decoder
from storage.files import read_json, require_format, sha256_file, write_json
from storage.weights import build_from, load_into, save_weights

FORMAT = "dae-decoder-1"


class DecoderRecord(BaseModel):
    """What decoder.json holds."""

    format: str
    autoencoder: dict
    frozen_sha256: str
    weights_sha256: str


def save_decoder(folder: Path, config: AutoencoderConfig, decoder: nn.Module, frozen_sha256: str) -> None:
    """Write decoder.safetensors and decoder.json."""
    weights_sha256 = save_weights(folder / "decoder.safetensors", decoder.state_dict())
    record = {"autoencoder": asdict(config), "frozen_sha256": frozen_sha256, "weights_sha256": weights_sha256}
    write_json(folder / "decoder.json", {"format": FORMAT, **record})


def load_decoder(folder: Path, frozen_sha256: str) -> Decoder:
    """Read a decoder for inference.

    Raises:
        PipelineError: when it was trained on the latents of another encoder (the message names both hashes), is in another format,
            or is damaged.
    """
    record = read_json(folder / "decoder.json", DecoderRecord)
    require_format(folder / "decoder.json", record["format"], FORMAT, "a decoder")
    if record["frozen_sha256"] != frozen_sha256:
        raise PipelineError(
            f"{folder}: this decoder was trained on frozen encoder {record['frozen_sha256'][:16]}, but the frozen encoder here is "
            f"{frozen_sha256[:16]}; run dvc repro to remake what is stale"
        )
    decoder = build_from(folder / "decoder.json", lambda config: Decoder(AutoencoderConfig(**config)), record["autoencoder"])
    return load_into(decoder, folder / "decoder.safetensors", record["weights_sha256"])


def decoder_sha256(folder: Path) -> str:
    """Identifies a decoder's weights."""
    return sha256_file(folder / "decoder.safetensors")
