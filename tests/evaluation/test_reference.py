"""The reference on disk: features of the images that the protocol names, or a refusal in one line."""

from types import SimpleNamespace

import pytest
import torch

from errors import PipelineError
from evaluation import reference
from evaluation.fidelity import Reference
from evaluation.reference import choose_training, load_reference, load_training, save_reference, save_training
from storage.shards import write_manifest
from tests.spoiling import survives

EXTRACTOR = SimpleNamespace(name="eyes", weights_sha256="0" * 64, input_size=8, resize_filter="box")
SETTINGS = SimpleNamespace(num_images=5, kid_subset_size=2, kid_num_subsets=1)


@pytest.fixture
def shards(tmp_path):
    write_manifest(tmp_path / "shards", {"validation": []}, 8, "png", [], dataset={"resize_filter": "box"})
    return tmp_path / "shards"


def test_features_come_back_with_their_protocol(shards, tmp_path):
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    protocol = save_reference(tmp_path, shards, features, EXTRACTOR, SETTINGS)
    reference, found = load_reference(tmp_path, shards, EXTRACTOR, SETTINGS)
    assert torch.equal(reference.features, features) and found == protocol


@pytest.mark.parametrize("features", [torch.zeros(4, 3), torch.zeros(5), torch.zeros(5, 3, 1), torch.zeros(5, 3, dtype=torch.int8)])
def test_features_of_other_images_or_of_another_shape_are_refused(shards, tmp_path, features):
    save_reference(tmp_path, shards, features, EXTRACTOR, SETTINGS)
    with pytest.raises(
        PipelineError, match=r"features\.safetensors: features are .*, not one row of numbers for each of 5 images; .*dvc repro"
    ):
        load_reference(tmp_path, shards, EXTRACTOR, SETTINGS)


def test_training_images_are_evenly_spaced_and_their_features_a_row_for_each(tmp_path, monkeypatch):
    counts = [{"name": f"train-{n}.tar", "num_images": n, "num_bytes": 1, "sha256": "0" * 64} for n in (4, 6)]
    write_manifest(tmp_path, {"train": counts}, 8, "png", [])
    assert choose_training(tmp_path) == list(range(10))
    monkeypatch.setattr(reference, "MAX_TRAINING_IMAGES", 5)
    assert choose_training(tmp_path) == [0, 2, 4, 6, 8]
    features, of_validation = torch.randn(5, 3), Reference.of(torch.randn(5, 3))
    save_training(tmp_path, features)
    loaded = load_training(tmp_path, tmp_path, of_validation)
    assert torch.equal(loaded.features, features) and loaded.indices == [0, 2, 4, 6, 8]
    for other in (features[:4], features[:, :2], features[0], features.to(torch.int8)):
        save_training(tmp_path, other)
        with pytest.raises(PipelineError, match=r"training\.safetensors: not 3 numbers for each of 5 training images; .*dvc repro"):
            load_training(tmp_path, tmp_path, of_validation)


def test_every_key_that_is_missing_or_of_another_type_is_one_line(shards, tmp_path):
    save_reference(tmp_path, shards, torch.randn(5, 3), EXTRACTOR, SETTINGS)
    for manifest in (tmp_path / "manifest.json", shards / "manifest.json"):
        assert survives(manifest, lambda: load_reference(tmp_path, shards, EXTRACTOR, SETTINGS))[1] > 20
    write_manifest(shards, {"validation": []}, 8, "png", [])
    with pytest.raises(PipelineError, match=r"shards/manifest\.json: dataset: field required"):
        save_reference(tmp_path, shards, torch.randn(5, 3), EXTRACTOR, SETTINGS)
