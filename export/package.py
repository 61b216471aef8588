"""What an exported folder holds: for sampling anywhere, or in the layout of diffusers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from errors import PipelineError
from export.card import autoencoder_card, generator_card
from export.diffusers_layout import layout_config, layout_weights, require_layout
from export.run import Run
from export.source import carried_sources
from storage.files import sha256_file, write_atomic, write_json
from storage.weights import save_weights

FORMAT = "dae-generator-1"


def write_export(target: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written beside ``target`` and moved there when it is whole.

    Raises:
        PipelineError: when something is there already.
    """
    require_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        write(beside)
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def require_free(target: Path) -> None:
    """Refuse to write over anything but an empty folder."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise PipelineError(f"--to {target}: exists and is not an empty folder; name another, or delete it")


def write_generator(folder: Path, run: Run) -> None:
    """Weights, config.json, model card and the code to load them: nothing else is needed but torch and safetensors."""
    for part, source in run.folders.items():
        shutil.copyfile(source / f"{part}.safetensors", folder / f"{part}.safetensors")
    config = {
        "format": FORMAT,
        "arm": run.arm,
        "seed": run.seed,
        "frozen_sha256": run.frozen.sha256,
        "image_size": run.frozen.autoencoder_config.image_size,
        "classes": run.classes,
        "label_counts": run.label_counts,
        **run.configs,
        "sampling": run.sampling,
        "weights_sha256": {part: sha256_file(folder / f"{part}.safetensors") for part in run.folders},
    }
    write_json(folder / "config.json", config)
    for name, text in carried_sources().items():
        write_atomic(folder / "generator" / name, text.encode())
    write_atomic(folder / "README.md", generator_card(run).encode())


def write_diffusers(folder: Path, run: Run) -> None:
    """The autoencoder alone, for ``from_pretrained`` of diffusers' VQModel or AutoencoderKL.

    Raises:
        PipelineError: naming the parameter for which diffusers has no counterpart.
    """
    encoder, bottleneck, decoder = run.frozen.encoder, run.frozen.bottleneck, run.decoder
    require_layout(run.frozen.autoencoder_config, decoder.config, run.configs["bottleneck"])
    statistics = None if bottleneck.is_discrete else (run.prior.latent_mean.tolist(), run.prior.latent_std.tolist())
    config = layout_config(decoder.config, bottleneck, statistics)
    write_json(folder / "config.json", config)
    save_weights(folder / "diffusion_pytorch_model.safetensors", layout_weights(encoder, bottleneck, decoder))
    write_atomic(folder / "README.md", autoencoder_card(run, config["_class_name"]).encode())
