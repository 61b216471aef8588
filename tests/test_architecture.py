"""docs/architecture.md: every addition it describes is made in a copy of the project, and works there."""

import io
import json
import re
import sys
from collections.abc import Callable
from zipfile import ZipFile

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.clone import PROJECT, Clone, merged

pytestmark = pytest.mark.timeout(600)

PAGE = (PROJECT / "docs/architecture.md").read_text()
ADDITIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", PAGE.partition("## Additions")[2], re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"(?:^(`[^\n]+`[^\n]*)\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMON = {  # keys that stay when a section becomes one of another kind
    "prior": ("class_conditional", "label_dropout", "training"),
    "sample": ("num_images", "batch_size", "images_per_shard", "guidance_scale"),
    "bottleneck": (),
}
MAX_FILES = {"A term of the loss": 4, "A bottleneck": 3, "A prior": 4, "A metric of images": 2, "A source of images": 4, "A stage": 6}


def blocks(addition: str) -> list[tuple[list[str], str, str]]:
    """(Files, language, text) of every block of code; one without files goes on in those of the block before it."""
    found, files = [], []
    for heading, language, text in BLOCK.findall(ADDITIONS[addition]):
        files = re.findall(r"`([\w/.-]+\.(?:py|yaml))`", heading) or (files if language == "diff" else [])
        found.append((files, language, text))
    return found


def patch(text: str, change: str) -> str:
    """A text with one hunk of a diff, whose lines it must have exactly once."""
    lines = change.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert f"\n{text}".count(f"\n{old}") == 1, f"not once in the file:\n{old}"
    return f"\n{text}".replace(f"\n{old}", f"\n{new}").removeprefix("\n")


def set_values(clone: Clone, changes: dict) -> None:
    path = clone.folder / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    for name, section in changes.items():
        if name in COMMON:
            tree[name] = {key: tree[name][key] for key in COMMON[name]} | section
        else:
            tree[name] = merged(tree[name], section)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


@pytest.fixture
def add(finished, tmp_path):
    """``add(name)``: a copy of a finished project with that addition made and its commands run; ``prepare`` is called before."""

    def make(name: str, prepare: Callable[[Clone], None] = lambda clone: None) -> Clone:
        clone = finished.copy(tmp_path / "project", with_produced=True)
        prepare(clone)
        commands = []
        for files, language, text in blocks(name):
            if language == "console":
                commands += text.splitlines()
            elif language == "diff":
                for file in files:
                    path = clone.folder / file
                    path.write_text(patch(path.read_text(), text))
            elif files:
                assert not (clone.folder / files[0]).exists()
                (clone.folder / files[0]).write_text(text)
            else:
                set_values(clone, yaml.safe_load(text))
        clone.run(sys.executable, "-m", "tests.imports")
        clone.run("ruff", "check", ".")
        for command in commands:
            program, *arguments = command.split()
            clone.run(sys.executable, *(["-m", "dvc"] if program == "dvc" else []), *arguments)
        return clone

    return make


def metrics(clone: Clone, name: str) -> dict:
    return json.loads((clone.folder / f"metrics/{name}.json").read_text())


def test_the_page_has_every_addition_and_none_takes_many_files():
    assert ADDITIONS.keys() == MAX_FILES.keys()
    for name, most in MAX_FILES.items():
        assert len({file for files, _, _ in blocks(name) for file in files}) <= most, name


def test_a_term_of_the_loss(add):
    clone = add("A term of the loss")
    header = (clone.folder / "curves/stage1/dae-0.csv").read_text().splitlines()[0].split(",")
    assert "total_variation" in header


def test_a_bottleneck(add):
    clone = add("A bottleneck")
    assert 0 < metrics(clone, "encode/dae-0")["codebook_usage"] <= 1
    assert metrics(clone, "prior/dae-0")["validation_nll_nats_per_token"] > 0


def test_a_prior(add):
    clone = add("A prior")
    measured = metrics(clone, "evaluate/dae-0")
    assert measured["prior"].keys() == {"validation_unigram_nll_nats_per_token"} and measured["samples"]["fd_efficientnet_lite0"] > 0


def test_a_metric_of_images(add):
    clone = add("A metric of images")
    assert 0 < metrics(clone, "reference")["floor"]["coverage"] <= 1
    assert 0 <= metrics(clone, "evaluate/dae-0")["samples"]["coverage"] <= 1
    legend = json.loads((clone.folder / "artifacts/evaluate/dae-0/legend.json").read_text())
    assert legend["metrics"]["coverage"]["direction"] == 1


def write_archive(clone: Clone) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    with ZipFile(clone.folder / "photos.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
        for number, image in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="PNG")
            archive.writestr(f"photos/{number}.png", file.getvalue())


def test_a_source_of_images(add):
    measured = metrics(add("A source of images", write_archive), "shards")
    assert (measured["num_train_images"], measured["num_validation_images"], measured["num_skipped"]) == (20, 60, 0)


def test_a_stage(add):
    clone = add("A stage")
    measured = metrics(clone, "neighbours/dae-0")
    assert 0 < measured["smallest_distance"] <= measured["median_distance"] < 1
