"""Model cards: what is recorded of a run, in words and tables. Nothing is said that the run's own files do not say."""

from collections.abc import Iterable
from pathlib import Path

import torch

from errors import one_line
from export.run import Run

PARTS = ("encoder", "bottleneck", "decoder", "prior")
MAX_CLASSES_NAMED = 20
USE = """```python
import sys; sys.path.insert(0, "FOLDER")  # this folder
from generator import load
images = load().sample(16, seed=0)  # uint8 (16, 3, {size}, {size}); image i of a seed is always the same
```

It needs Python 3.11 or later, torch (it was made with {torch}) and safetensors, and nothing else. `load("cuda")` puts it on a GPU;
`encode(images)` and `decode(latents)` of what `load` returns go through the autoencoder alone. Of several such folders, each with a
name that Python accepts, `from NAME.generator import load` takes one, with their parent on the path."""

USE_CLASSES = """ `sample(..., labels=[...])` asks
for classes, one per image, by name or number ({classes}); by default they are as frequent as in the training data."""

USE_DIFFUSERS = """```python
from diffusers import {name}
autoencoder = {name}.from_pretrained("FOLDER")  # this folder
reconstruction = autoencoder(images).sample  # images and reconstruction: (B, 3, {size}, {size}) in [-1, 1]
```"""

USE_STATISTICS = """

Latents are normalised by `(latents - latents_mean) / latents_std`, per channel, as config.json has them; `scaling_factor` is 1."""

LIMITS = """## Limits

* It knows images of {size}x{size} pixels like those it was trained on, and shares whatever they lack or lean towards.
* The metrics above say how far it is from real images of the same source, under this protocol. Values under another protocol
  cannot be compared with them.{not_fid}
* The licence of the training images is not recorded; it decides what may be done with these weights."""

NOT_FID = " None of them is FID, which takes Inception-v3 features."


def generator_card(run: Run) -> str:
    """README.md of a generator's folder."""
    size = run.frozen.autoencoder_config.image_size
    what = f"A generator of {size}x{size} images: a two-stage model, trained as arm `{run.arm}` with seed {run.seed}."
    use = USE.format(size=size, torch=torch.__version__)
    if run.classes:
        use += USE_CLASSES.format(classes=_names(run.classes))
    others = [name for name in run.metrics["evaluate"] if name not in ("samples", "protocol", "frozen_sha256")]
    head = _join(f"# Image generator {run.name}", what, use)
    body = (_model(run, PARTS), _data(run), _training(run, ("stage1", "stage2", "prior")), _sampling(run))
    return _join(head, *body, _metrics(run, ["samples", *others]), _limits(run)) + "\n"


def autoencoder_card(run: Run, class_name: str) -> str:
    """README.md of an autoencoder in diffusers' layout."""
    size = run.frozen.autoencoder_config.image_size
    what = f"An autoencoder of {size}x{size} images in the layout of diffusers, trained as arm `{run.arm}` with seed {run.seed}."
    use = USE_DIFFUSERS.format(name=class_name, size=size)
    if class_name == "AutoencoderKL":
        use += USE_STATISTICS
    head = _join(f"# Autoencoder {run.name}", what, use)
    body = (_model(run, PARTS[:3]), _data(run), _training(run, ("stage1", "stage2")))
    return _join(head, *body, _metrics(run, ["reconstruction_stage2"]), _limits(run)) + "\n"


def _join(*sections: str) -> str:
    return "\n\n".join(sections)


def _model(run: Run, parts: tuple[str, ...]) -> str:
    rows = [(name, f"{run.num_parameters[name]:,}", _shape(name, run.configs[name])) for name in parts]
    return (
        f"## Model\n\n{_table(('part', 'parameters', 'shape'), rows)}\n\n"
        f"Encoder and bottleneck were frozen under the hash `{run.frozen.sha256}`; decoder and prior belong to them alone."
    )


def _public(path: str) -> str:
    """Of a path outside the project the last name only: the rest says how somebody's machine is laid out."""
    outside = Path(path).is_absolute() or ".." in Path(path).parts
    return Path(path).name if outside else path


def _data(run: Run) -> str:
    data = run.data
    facts = {
        "source": f"{data['source']['kind']} `{_public(data['source']['path'])}`",
        "found, of which skipped": f"{data['num_found']:,}, {data['num_skipped']:,}",
        **{f"{split} images": f"{entry['num_images']:,}" for split, entry in data["splits"].items()},
        "classes": _names(data["classes"]) or "no labels",
        "image size": f"{data['image_size']} pixels, resized by `{data['dataset']['resize_filter']}`, crop `{data['dataset']['crop']}`",
    }
    return f"## Data\n\n{_table(('', ''), facts.items())}"


def _training(run: Run, stages: tuple[str, ...]) -> str:
    keys = ("num_steps", "num_images_seen", "num_skipped_steps")
    rows = [(stage, *(f"{run.metrics[stage][key]:,}" for key in keys)) for stage in stages]
    weak = f"{run.auxiliary.decoder_channels} channels and dropout {run.auxiliary.decoder_dropout}"
    note = (
        f"Stage 1 trained the encoder against an auxiliary decoder with {weak}, stage 2 the decoder, with "
        f"{run.decoder.config.decoder_channels} channels, on frozen latents (0 steps: it is stage 1's decoder)."
    )
    return f"## Training\n\n{_table(('stage', 'steps', 'images seen', 'steps skipped (not finite)'), rows)}\n\n{note}"


def _sampling(run: Run) -> str:
    note = "The settings that the metrics belong to, and what `sample` takes unless told otherwise:"
    return f"## Sampling\n\n{note}\n\n{_table(('', ''), run.sampling.items())}"


def _metrics(run: Run, sections: list[str]) -> str:
    """Values, the floor beside them where there is one, and the protocol they rest on."""
    evaluated = run.metrics["evaluate"]
    rows = []
    for section in sections:
        has_floor = section.startswith(("samples", "reconstruction"))
        for name, value in evaluated[section].items():
            floor = run.floor.get(name) if has_floor else None
            rows.append((section, f"`{name}`", f"{value:.5g}", "" if floor is None else f"{floor:.5g}"))
    head = ("of", "metric", "value", "floor: real training images")
    return f"## Metrics\n\n{_table(head, rows)}\n\nProtocol:\n\n{_table(('', ''), evaluated['protocol'].items())}"


def _limits(run: Run) -> str:
    not_fid = "" if "fid" in run.metrics["evaluate"]["samples"] else NOT_FID
    return LIMITS.format(size=run.frozen.autoencoder_config.image_size, not_fid=not_fid)


def _shape(part: str, config: dict) -> str:
    """A part's config in one line; encoder and decoder share a record, of which each has its fields."""
    others = {"encoder": ("decoder_",), "decoder": ("encoder_", "channels")}.get(part, ())
    fields = {name: value for name, value in config.items() if not name.startswith(others)}
    return ", ".join(f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in fields.items())


def _names(classes: list[str]) -> str:
    return ", ".join(classes) if len(classes) <= MAX_CLASSES_NAMED else f"{len(classes):,} of them"


def _table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[one_line(str(cell)).replace("|", r"\|") for cell in line] for line in lines]  # a class may be called anything
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
