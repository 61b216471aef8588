"""Feature extractors: the same features as their origin's, whatever the batch; errors that say what to get."""

import io
import urllib.error

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from errors import PipelineError
from evaluation.efficientnet import load_published, load_stages
from evaluation.extractors import build_extractor
from evaluation.fidelity import (
    KID_SEED,
    Reference,
    extract,
    features_to_statistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
    sample_metrics,
)
from models.autoencoder import from_uint8
from sections import Evaluation
from tests.evaluation.faces import faces

CPU = torch.device("cpu")
NUM_IMAGES = 60
SETTINGS = Evaluation(
    extractor="inception-v3-compat",
    extractor_weights_path=None,
    input_size=64,
    num_images=12,
    kid_subset_size=6,
    kid_num_subsets=3,
    batch_size=4,
    num_grid_images=4,
)


@pytest.fixture(scope="module")
def efficientnet():
    return build_extractor("efficientnet-lite0", None, 64, CPU)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Weights of the right shapes, random."""
    state = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        buffer = io.BytesIO()
        torch.save({}, buffer)
        buffer.seek(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=buffer).state_dict()
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("size", [64, 97])
def test_the_rebuilt_network_computes_what_the_published_one_does(size):
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = images
    for stage in load_stages():
        x = stage(x)
    with torch.inference_mode():
        expected = load_published().extract_features(images)
    assert expected.abs().max() > 1
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_features_are_the_published_networks_pooled_ones(efficientnet):
    images = torch.nn.functional.interpolate(faces(0, 4).float(), (64, 64), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.inference_mode():
        expected = load_published().extract_features(images / 127.5 - 1).mean((2, 3))
    torch.testing.assert_close(efficientnet(faces(0, 4))["features"], expected, rtol=1e-4, atol=1e-4)


def test_the_published_network_knows_these_weights(efficientnet):
    """A network with wrong weights or a wrong input range is never sure of anything."""
    with torch.inference_mode():
        images = torch.nn.functional.interpolate(from_uint8(faces(0, 20)), (96, 96), mode="bicubic")
        confidence = load_published()(images).softmax(-1).max(-1).values
    assert confidence.mean() > 0.3


def test_features_do_not_depend_on_the_batch(efficientnet):
    images = faces(0, 20)
    at_once, in_parts = efficientnet(images)["features"], extract(efficientnet, images.split(3))["features"]
    assert at_once.shape == (20, 1280)
    torch.testing.assert_close(in_parts, at_once, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(efficientnet(images.flip(0))["features"].flip(0), at_once, rtol=1e-4, atol=1e-4)


def test_larger_images_are_shrunk_without_aliasing(efficientnet):
    smooth = torch.nn.functional.interpolate(faces(0, 4).float(), (256, 256), mode="bicubic").clamp(0, 255)
    stripes = torch.zeros(1, 1, 256, 256)
    stripes[..., ::2] = 20  # above and below: an average of nothing
    striped = (smooth + stripes - 10).clamp(0, 255).to(torch.uint8)
    change = (efficientnet(striped)["features"] - efficientnet(smooth.to(torch.uint8))["features"]).norm()
    assert change < 0.5 * (efficientnet(faces(0, 4))["features"] - efficientnet(faces(4, 8))["features"]).norm()


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_torch_fidelity_computes_the_same_metrics_with_the_registered_extractor(efficientnet):
    first, second = faces(0, NUM_IMAGES), faces(NUM_IMAGES, 2 * NUM_IMAGES)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(first), input2=Images(second), cuda=False, fid=True, kid=True, prc=True, kid_subset_size=20, kid_subsets=10,
        feature_extractor="efficientnet-lite0", input_size=64, cache=False, verbose=False, save_cpu_ram=True, batch_size=16,
        rng_seed=KID_SEED,
    )  # fmt: skip
    ours, reference = extract(efficientnet, first.split(25))["features"], extract(efficientnet, second.split(25))["features"]
    frechet = frechet_distance(features_to_statistics(ours), features_to_statistics(reference))
    assert frechet == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert kernel_distance(ours, reference, 20, 10) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert precision_recall(ours, reference) == pytest.approx({name: expected[name] for name in ("precision", "recall")})


def test_an_input_too_small_to_see_anything_is_refused():
    with pytest.raises(PipelineError, match=r"evaluation\.input_size is 32.*64"):
        build_extractor("efficientnet-lite0", None, 32, CPU)


def test_inception_gives_fid_kid_and_its_score(inception_file):
    extractor = build_extractor("inception-v3-compat", str(inception_file), 64, CPU)
    assert (extractor.input_size, extractor.resize_filter) == (299, "bilinear (tensorflow 1)")
    outputs = extract(extractor, faces(0, 12).split(4))
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {"features": (12, 2048), "logits": (12, 1008)}
    outputs["features"] = outputs["features"][:, :64]  # the rest would only take longer
    metrics = sample_metrics(outputs, Reference.of(outputs["features"]), extractor, SETTINGS)
    assert sorted(metrics) == ["fid", "inception_score", "kid", "precision", "recall"]


def test_inception_offline_says_which_file_to_get_and_where_to_name_it(monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(PipelineError) as error:
        build_extractor("inception-v3-compat", None, 64, CPU)
    message = str(error.value)
    assert "\n" not in message
    for part in ("weights-inception-2015-12-05-6726825d.pth", "evaluation.extractor_weights_path", "no network", "efficientnet-lite0"):
        assert part in message


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_wrong_file_is_one_line_and_never_run(tmp_path, capsys):
    not_weights, other_weights, evil = tmp_path / "notes.txt", tmp_path / "other.pth", tmp_path / "evil.pth"
    not_weights.write_text("hello")
    torch.save({"fc.weight": torch.zeros(1)}, other_weights)
    torch.save({"fc.weight": Payload()}, evil)
    for path in (tmp_path / "missing.pth", not_weights, other_weights, evil):
        with pytest.raises(PipelineError) as error:
            build_extractor("inception-v3-compat", str(path), 64, CPU)
        assert "\n" not in str(error.value)
        for part in (str(path), "evaluation.extractor_weights_path", "weights-inception-2015-12-05-6726825d.pth"):
            assert part in str(error.value)
    assert "unpickled" not in capsys.readouterr().out
