"""Weights on disk: exact, repeatable, and refused in one line when damaged or not the module's."""

import math

import pytest
import torch
from safetensors.torch import save
from torch import nn

from errors import PipelineError
from storage.weights import content_sha256, load_into, load_weights, save_weights

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int64)}


def test_tensors_come_back_exactly(tmp_path):
    state = {**STATE, "half": torch.randn(3, 3).bfloat16(), "strided": torch.randn(4, 6).T, "scalar": torch.tensor(2.5)}
    save_weights(tmp_path / "new/folder/w.safetensors", state)
    loaded = load_weights(tmp_path / "new/folder/w.safetensors")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_same_tensors_are_the_same_bytes_in_any_order(tmp_path):
    save_weights(tmp_path / "1", STATE)
    trained = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in reversed(STATE.items())}
    save_weights(tmp_path / "2", trained)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_writing_leaves_no_other_file(tmp_path):
    save_weights(tmp_path / "w.safetensors", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "header"])
def test_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE)
    data = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "truncated": data[:-3], "garbage": b"not tensors" * 9, "header": b"\xff" * 8 + data[8:]}
    if damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(PipelineError) as error:
        load_weights(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "dvc repro" in message


@pytest.mark.parametrize("other", [nn.Linear(3, 3), nn.Linear(4, 2), nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2, bias=False)])
def test_weights_of_another_module_are_one_line(tmp_path, other):
    save_weights(tmp_path / "w.safetensors", nn.Linear(3, 2).state_dict())
    with pytest.raises(PipelineError) as error:
        load_into(other, tmp_path / "w.safetensors")
    message = str(error.value)
    assert str(tmp_path / "w.safetensors") in message and "dvc repro" in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64])
def test_tensors_of_another_type_are_refused_and_not_cast(tmp_path, other):
    save_weights(tmp_path / "w", {name: tensor.to(other) for name, tensor in nn.Linear(3, 2).state_dict().items()})
    with pytest.raises(PipelineError, match=rf"^{tmp_path / 'w'}: weights do not fit .* is {str(other)[6:]}, not float32\); .*dvc repro"):
        load_into(nn.Linear(3, 2), tmp_path / "w")


def test_loaded_module_is_ready_for_inference(tmp_path):
    saved = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    save_weights(tmp_path / "w", saved.state_dict())
    module = load_into(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), tmp_path / "w")
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    x = torch.randn(5, 3)
    assert torch.equal(module(x), saved.eval()(x))


def test_content_hash_knows_everything_that_matters():
    config, tensors = {"width": 2, "depth": 1}, {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    original = content_sha256(config, tensors)
    assert content_sha256({"depth": 1, "width": 2}, dict(reversed(tensors.items()))) == original
    assert content_sha256(config, {**tensors, "a": torch.zeros(3, 2).T}) == original
    others = [
        content_sha256({**config, "width": 3}, tensors),
        content_sha256(config, {"a": tensors["a"]}),
        content_sha256(config, {"a": tensors["a"], "c": tensors["b"]}),
        content_sha256(config, {**tensors, "a": torch.zeros(3, 2)}),
        content_sha256(config, {**tensors, "a": torch.zeros(2, 3, dtype=torch.int32)}),
        content_sha256(config, {**tensors, "b": torch.tensor([1.0, 1.0000001])}),
    ]
    assert len({original, *others}) == len(others) + 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path, value):
    path = tmp_path / "w.safetensors"
    state = {**STATE, "c": torch.tensor([0.0, value])}
    with pytest.raises(PipelineError, match="c has values that are not finite"):
        save_weights(path, state)
    assert not path.exists()
    path.write_bytes(save(state))
    with pytest.raises(PipelineError, match=r"w\.safetensors: c has values that are not finite"):
        load_weights(path)
