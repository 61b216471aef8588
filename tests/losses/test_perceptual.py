"""Perceptual distances: zero for equal images, larger for worse ones, gradients that improve the reconstruction alone."""

import urllib.error

import pytest
import torch

from errors import PipelineError
from losses.perceptual import build_perceptual
from models.autoencoder import from_uint8
from tests.evaluation.faces import blurred, faces, noisy


@pytest.fixture(scope="module")
def distance():
    return build_perceptual("efficientnet-lite0", None)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """VGG-16 in torchvision's layout (convolutions only) with random weights that keep the signal's size."""
    generator = torch.Generator().manual_seed(0)
    layers = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
    weights, channels = {}, 3
    for layer, width in layers.items():
        scale = (2 / (9 * channels)) ** 0.5
        weights[f"features.{layer}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
        weights[f"features.{layer}.bias"] = torch.zeros(width)
        channels = width
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def lpips_distance(vgg_file):
    return build_perceptual("lpips", str(vgg_file))


@pytest.fixture(params=["distance", "lpips_distance"])
def either(request):
    return request.getfixturevalue(request.param)


TARGET = from_uint8(faces(0, 8))


def test_none_is_no_distance():
    assert build_perceptual("none", None) is None


def test_equal_images_are_at_distance_zero(either):
    values = either(TARGET, TARGET)
    assert values.shape == (8,)
    assert values.dtype == torch.float32
    assert values.abs().max() < 1e-6


def test_it_is_symmetric(either):
    other = from_uint8(faces(8, 16))
    torch.testing.assert_close(either(TARGET, other), either(other, TARGET))


def test_each_image_counts_for_itself(either):
    other = from_uint8(faces(8, 16))
    torch.testing.assert_close(either(TARGET, other)[3:4], either(TARGET[3:4], other[3:4]), rtol=1e-4, atol=1e-6)


def test_worse_images_are_further(distance):
    for spoil, amounts in ((noisy, (5, 15, 40)), (blurred, (2, 4, 8))):
        values = [distance(from_uint8(spoil(faces(0, 8), amount)), TARGET).mean().item() for amount in amounts]
        assert 0 < values[0] < values[1] < values[2], (spoil, values)
    assert distance(from_uint8(faces(8, 16)), TARGET).mean() > values[0]  # another face is further than a blurred one


def test_its_gradient_improves_the_reconstruction_and_leaves_the_target_alone(either):
    reconstruction = from_uint8(noisy(faces(0, 8), 20)).requires_grad_()
    target = TARGET.clone().requires_grad_()
    before = either(reconstruction, target)
    before.sum().backward()
    assert target.grad is None
    assert torch.isfinite(reconstruction.grad).all()
    step = 0.05 * reconstruction.grad / reconstruction.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (either(reconstruction - step, TARGET) < before).all()


def test_a_flat_image_has_a_finite_gradient(distance):
    reconstruction = torch.zeros(2, 3, 32, 32, requires_grad=True)
    distance(reconstruction, TARGET[:2]).sum().backward()
    assert torch.isfinite(reconstruction.grad).all()


def test_it_is_frozen_and_stays_in_eval_mode(either):
    holder = torch.nn.Sequential(either).train()
    assert not any(module.training for module in holder[0].modules())
    assert not any(parameter.requires_grad for parameter in either.parameters())


def test_it_computes_in_fp32_under_autocast(distance):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(from_uint8(faces(8, 16)), TARGET)
    assert torch.equal(inside, distance(from_uint8(faces(8, 16)), TARGET))


def test_building_it_leaves_the_random_numbers_where_they_were():
    state = torch.random.get_rng_state()
    build_perceptual("efficientnet-lite0", None)
    assert torch.equal(state, torch.random.get_rng_state())


def test_other_image_sizes(distance):
    for size in (16, 24, 33, 64):
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1
        assert distance(images, -images).min() > 0.01


def test_lpips_offline_says_which_file_to_get_and_where_to_name_it(monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(PipelineError) as error:
        build_perceptual("lpips", None)
    message = str(error.value)
    assert "\n" not in message
    for part in ("vgg16-397923af.pth", "reconstruction_loss.perceptual_weights_path", "no network", "efficientnet-lite0"):
        assert part in message


def test_lpips_with_a_wrong_file_is_one_line(tmp_path):
    not_weights, other_weights = tmp_path / "notes.txt", tmp_path / "other.pth"
    not_weights.write_text("hello")
    torch.save({"features.0.weight": torch.zeros(1)}, other_weights)
    for path in (tmp_path / "missing.pth", tmp_path, not_weights, other_weights):
        with pytest.raises(PipelineError) as error:
            build_perceptual("lpips", str(path))
        assert "\n" not in str(error.value)
        for part in (str(path), "reconstruction_loss.perceptual_weights_path", "vgg16-397923af.pth"):
            assert part in str(error.value)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"features.0.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(PipelineError):
        build_perceptual("lpips", str(tmp_path / "evil.pth"))
    assert "unpickled" not in capsys.readouterr().out
