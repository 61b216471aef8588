"""The reference stage: features of the right images under a full protocol, and a floor that knows good data from bad."""

import json

import pytest
import torch

import evaluation.factors
from errors import PipelineError
from evaluation.extractors import build_extractor
from evaluation.factors import load_judge, train_judge
from evaluation.pyramid import project, sliced_wasserstein
from evaluation.reference import evenly_spaced, load_reference
from ingest.avatars import FACTORS, factors, index_of
from params import Params
from stage import execute
from storage.files import sha256_file
from storage.shards import ShardDataset
from storage.weights import load_weights
from tasks.reference import STAGE
from tests.evaluation.faces import faces, noisy
from tests.tasks.finished_run import small_params, write_faces, write_shards

PARAMS = small_params()


def reference(root, params: Params = PARAMS) -> dict:
    execute(STAGE, params, None, 0, root)
    return json.loads((root / "metrics/reference.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def metrics(root):
    return reference(root)


@pytest.fixture
def extractor():
    return build_extractor("efficientnet-lite0", None, PARAMS.evaluation.input_size, torch.device("cpu"))


def test_features_are_those_of_validation_images_from_the_whole_split(root, metrics, extractor):
    features = load_weights(root / "artifacts/reference/features.safetensors")["features"]
    chosen = evenly_spaced(24, 20)
    assert features.shape == (20, 1280)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 22, 20)
    torch.testing.assert_close(features, extractor(faces(0, 24)[chosen])["features"], rtol=1e-4, atol=1e-4)


def test_features_of_training_images_are_kept_too(root, metrics, extractor):
    features = load_weights(root / "artifacts/reference/training.safetensors")["features"]
    torch.testing.assert_close(features, extractor(faces(40, 64))["features"], rtol=1e-4, atol=1e-4)


def test_the_protocol_is_in_the_manifest_and_beside_the_floor(root, metrics):
    manifest = json.loads((root / "artifacts/reference/manifest.json").read_text())
    assert manifest["protocol"] == metrics["protocol"]
    assert manifest["shards_sha256"] == sha256_file(root / "artifacts/shards/manifest.json")
    assert metrics["protocol"]["reference_sha256"] == sha256_file(root / "artifacts/reference/features.safetensors")
    assert metrics["protocol"]["num_images"] == 20


def test_the_floor_carries_the_extractors_name(metrics):
    assert set(metrics) == {"protocol", "floor"}  # no factors: these shards do not say that their faces were drawn by a recipe
    assert {"fd_efficientnet_lite0", "kd_efficientnet_lite0", "precision", "recall", "swd_laplacian"} <= metrics["floor"].keys()
    assert not {"fid", "kid", "inception_score", "factor_tv", "psnr_db"} & metrics["floor"].keys()


def test_the_floor_of_patches_is_that_of_training_images_to_validation_images(metrics):
    validation, train = faces(0, 24)[evenly_spaced(24, 20)], faces(40, 64)[evenly_spaced(24, 20)]
    real = project([validation], 20)
    expected = sliced_wasserstein(project([train], 20, real), real)
    assert metrics["floor"]["swd_laplacian"] == pytest.approx(expected, rel=1e-4)


def test_the_floor_rises_when_training_images_are_not_like_validation_images(metrics, tmp_path):
    write_shards(tmp_path, noisy(faces(40, 64), 30))
    shifted = reference(tmp_path)
    for name in ("fd_efficientnet_lite0", "kd_efficientnet_lite0", "swd_laplacian"):
        assert shifted["floor"][name] > metrics["floor"][name]
    assert shifted["protocol"] == metrics["protocol"]


def test_the_same_inputs_give_the_same_bytes(root, metrics, tmp_path):
    write_shards(tmp_path)
    reference(tmp_path)
    files = ("features.safetensors", "training.safetensors", "manifest.json")
    for name in (*(f"artifacts/reference/{file}" for file in files), "metrics/reference.json"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()


@pytest.mark.parametrize(
    ("num_images", "parts"), [(30, ("30", "24 validation", "num_validation_images")), (22, ("22", "21 train", "dataset.source"))]
)
def test_too_few_images_names_both_numbers_and_what_to_change(num_images, parts, tmp_path):
    write_shards(tmp_path, faces(40, 61))
    with pytest.raises(PipelineError) as error:
        execute(STAGE, small_params(num_images=num_images), None, 0, tmp_path)
    for part in ("evaluation.num_images", *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_another_protocol_is_refused(root, metrics, extractor):
    with pytest.raises(PipelineError, match=r"kid_subset_size 10, asked for is 9.*dvc repro reference"):
        load_reference(root / "artifacts/reference", root / "artifacts/shards", extractor, small_params(kid_subset_size=9).evaluation)


def test_changed_features_are_refused(tmp_path, extractor):
    write_shards(tmp_path)
    reference(tmp_path)
    path = tmp_path / "artifacts/reference/features.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(PipelineError, match="its hash is"):
        load_reference(tmp_path / "artifacts/reference", tmp_path / "artifacts/shards", extractor, PARAMS.evaluation)


def test_cartoon_faces_teach_a_network_their_factors(tmp_path, monkeypatch):
    taught = []

    def keep(images, factors, num_classes, device):
        taught.append((images, factors))
        return train_judge(images, factors, num_classes, device)

    monkeypatch.setattr(evaluation.factors, "NUM_STEPS", 60)
    monkeypatch.setattr(evaluation.factors, "BATCH_SIZE", 40)
    monkeypatch.setattr(evaluation.factors, "MIN_ACCURACY", 0.5)
    monkeypatch.setattr("tasks.reference.NUM_LAW_FACES", 500)
    monkeypatch.setattr("tasks.reference.train_judge", keep)
    write_faces(tmp_path, PARAMS)
    made = reference(tmp_path)
    train, validation = (ShardDataset(tmp_path / "artifacts/shards", split) for split in ("train", "validation"))
    assert torch.equal(taught[0][0], train.images(range(40)))
    assert taught[0][1].tolist() == [list(factors(7, index_of(key)).values()) for key in train.keys]
    judge = load_judge(tmp_path / "artifacts/reference", torch.device("cpu"))
    chosen = evenly_spaced(24, 20)
    true = torch.tensor([list(factors(7, index_of(validation.keys[index])).values()) for index in chosen])
    accuracy = (judge.read(validation.images(chosen)) == true).double().mean(0)
    for name, value in zip(FACTORS, accuracy.tolist(), strict=True):
        assert made["factors"][name] == {"accuracy": pytest.approx(value, abs=0.06), "is_judged_by": name in judge.kept}
    floor = judge.total_variation(judge.read(train.images(evenly_spaced(40, 20))))
    assert made["floor"]["factor_tv"] == pytest.approx(floor, abs=0.05)
