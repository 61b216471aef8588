"""Whatever is missing or of another type in what one stage has left for another: one line, never a traceback."""

import pytest
import torch

from export.card import autoencoder_card, generator_card
from export.run import read_run
from storage.frozen import load_frozen
from storage.latents import LatentDataset
from storage.seals import SEAL
from storage.shards import ShardDataset
from tests.export.runs import RUN, SEED, write_run
from tests.sealing import seal
from tests.spoiling import survives
from tests.storage.test_latents import folder as latents_folder  # noqa: F401


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "root", "dit", True)


def every_json(root) -> list:
    return sorted(path.relative_to(root) for path in root.rglob("*.json"))


@pytest.mark.slow
def test_export(root):
    for path in every_json(root):
        if path.parts[0] == "durations" or path.parts[:2] == ("metrics", "sample") or path.name in ("probe.json", SEAL):
            continue  # the first two are not read by an export, the last two have tests of their own

        def read():
            run = read_run(seal(root), "dae", SEED)
            return generator_card(run), autoencoder_card(run, "AutoencoderKL")

        assert survives(root / path, read)[1] > 2, path


def test_shards(root):
    file = root / "artifacts/shards/manifest.json"
    assert survives(file, lambda: ShardDataset(root / "artifacts/shards", "train").images([0]))[1] > 10


def test_frozen_encoder(root):
    for name in ("config.json", "probe.json"):
        assert survives(root / f"artifacts/freeze/{RUN}/{name}", lambda: load_frozen(root / f"artifacts/freeze/{RUN}"))[1] > 2


def test_latents(latents_folder):  # noqa: F811
    def read():
        latents = LatentDataset(latents_folder, "train")
        return latents.batch(range(len(latents)))

    assert survives(latents_folder / "manifest.json", read)[1] > 10
    whole = read()
    for file in sorted(latents_folder.glob("train*.arrow")):
        data = file.read_bytes()
        for position in range(0, len(data), 97):
            file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(Exception, match="damaged latents") as error:
                read()
            assert "\n" not in str(error.value)
        file.write_bytes(data)
    assert torch.equal(read()["tokens"], whole["tokens"])
