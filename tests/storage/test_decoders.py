"""Decoders and priors on disk: each belongs to one frozen encoder and is refused with any other."""

import json
from dataclasses import asdict

import pytest
import torch

from errors import PipelineError
from models.transformer import Transformer, TransformerConfig
from storage.decoders import decoder_sha256, load_decoder, save_decoder
from storage.priors import load_prior, save_prior
from tests.storage.networks import AUTOENCODER, networks

FROZEN, OTHER = "a" * 64, "b" * 64
TRANSFORMER = TransformerConfig(
    num_codes=16, latent_size=4, num_classes=3, num_layers=1, num_heads=2, width=8, dropout=0.1, label_dropout=0.1
)
FILES = {"decoder": ("decoder.safetensors", "decoder.json"), "prior": ("prior.safetensors", "prior.json")}


def write(kind: str, folder) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "decoder":
        module = networks()["decoder"]
        save_decoder(folder, AUTOENCODER, module, FROZEN)
    else:
        module = Transformer(TRANSFORMER).eval()
        save_prior(folder, module, FROZEN, [5, 0, 7])
    return module


def load(kind: str, folder, frozen_sha256: str = FROZEN) -> torch.nn.Module:
    return load_decoder(folder, frozen_sha256) if kind == "decoder" else load_prior(folder, frozen_sha256)[0]


def refusal(kind: str, folder, frozen_sha256: str = FROZEN) -> str:
    with pytest.raises(PipelineError) as error:
        load(kind, folder, frozen_sha256)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message
    return message


@pytest.mark.parametrize("kind", FILES)
def test_comes_back_exactly_and_ready_for_inference(tmp_path, kind):
    saved, loaded = write(kind, tmp_path), load(kind, tmp_path)
    assert json.dumps(asdict(loaded.config)) == json.dumps(asdict(saved.config))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("kind", FILES)
def test_same_weights_are_the_same_bytes(tmp_path, kind):
    for name in ("1", "2"):
        write(kind, tmp_path / name)
    for name in FILES[kind]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("kind", FILES)
def test_another_frozen_encoder_is_refused_with_both_hashes(tmp_path, kind):
    write(kind, tmp_path)
    message = refusal(kind, tmp_path, OTHER)
    assert FROZEN[:16] in message and OTHER[:16] in message and "dvc repro" in message


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damaged_file_is_one_line_that_names_it(tmp_path, kind, file, damage):
    write(kind, tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage != "missing":
        (tmp_path / file).write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    assert str(tmp_path / file) in refusal(kind, tmp_path)


@pytest.mark.parametrize("kind", FILES)
def test_weights_that_do_not_fit_the_config_are_one_line(tmp_path, kind):
    write(kind, tmp_path)
    path = tmp_path / f"{kind}.json"
    path.write_text(path.read_text().replace('"channels": 8', '"channels": 16').replace('"width": 8', '"width": 16'))
    path.write_text(path.read_text().replace('"decoder_channels": 8', '"decoder_channels": 16'))
    assert f"{kind}.safetensors" in refusal(kind, tmp_path)


def test_prior_keeps_how_many_images_each_class_had(tmp_path):
    write("prior", tmp_path)
    assert load_prior(tmp_path, FROZEN)[1] == [5, 0, 7]


def test_decoder_hash_is_of_its_weights(tmp_path):
    write("decoder", tmp_path / "1")
    save_decoder(tmp_path / "2", AUTOENCODER, networks()["decoder"], OTHER)
    save_decoder(tmp_path / "3", AUTOENCODER, networks(seed=1)["decoder"], FROZEN)
    hashes = [decoder_sha256(tmp_path / name) for name in ("1", "2", "3")]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("kind", FILES)
def test_each_flipped_byte_of_the_weights_is_noticed(tmp_path, kind):
    write(kind, tmp_path)
    path = tmp_path / f"{kind}.safetensors"
    data = path.read_bytes()
    for position in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert f"{path}: not the weights that were written" in refusal(kind, tmp_path)


@pytest.mark.parametrize("kind", FILES)
def test_every_missing_key_of_the_record_is_one_line_that_names_it(tmp_path, kind):
    write(kind, tmp_path)
    path = tmp_path / f"{kind}.json"
    whole = json.loads(path.read_text())
    for key in whole:
        for broken in ({name: value for name, value in whole.items() if name != key}, {**whole, key: 7}):
            path.write_text(json.dumps(broken))
            assert f"{path}: {key}: " in refusal(kind, tmp_path)
    config = next(name for name in ("autoencoder", "prior") if name in whole)
    for key in whole[config].keys() - {"decoder_block_dropout"}:  # files of before it was there lack it, and had none
        path.write_text(json.dumps({**whole, config: {name: value for name, value in whole[config].items() if name != key}}))
        message = refusal(kind, tmp_path)
        assert str(path) in message and key in message


@pytest.mark.parametrize("kind", FILES)
def test_another_format_is_refused(tmp_path, kind):
    write(kind, tmp_path)
    path = tmp_path / f"{kind}.json"
    record = json.loads(path.read_text())
    assert record["format"] == f"dae-{kind}-1"
    path.write_text(json.dumps({**record, "format": f"dae-{kind}-0"}))
    assert f"{path}: not a {kind} in format dae-{kind}-1; run dvc repro" in refusal(kind, tmp_path)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("tree", [[], None, "text", 7, {}])
def test_a_record_of_another_shape_is_one_line(tmp_path, kind, tree):
    write(kind, tmp_path)
    (tmp_path / f"{kind}.json").write_text(json.dumps(tree))
    assert f"{kind}.json" in refusal(kind, tmp_path)


@pytest.mark.parametrize("counts", [[], [5, 0], [5, 0, 7, 1], [0, 0, 0]])
def test_label_counts_of_other_classes_than_the_priors_are_refused(tmp_path, counts):
    write("prior", tmp_path)
    path = tmp_path / "prior.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_counts": counts}))
    with pytest.raises(PipelineError, match=r"prior\.json: label_counts: \d counts of 3 classes; .*dvc repro"):
        load_prior(tmp_path, FROZEN)
