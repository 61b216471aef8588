"""The freeze contract: a frozen encoder is what its hash and probe say, or it is refused."""

import json
import pickle
from dataclasses import replace

import pytest
import torch

from errors import PipelineError
from models.autoencoder import Encoder
from models.bottleneck import build_bottleneck
from storage.frozen import PROBE_FORMAT, encoder_config, load_encoder, load_frozen, save_encoder, save_probe
from storage.weights import save_weights
from tests.storage.networks import AUTOENCODER, BOTTLENECK, images, networks, write_frozen


def refusal(folder, load=load_frozen) -> str:
    with pytest.raises(PipelineError) as error:
        load(folder)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message and "dvc repro" in message
    return message


def flip_byte(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_frozen_encoder_computes_what_the_trained_one_did(tmp_path):
    sha256 = write_frozen(tmp_path)
    frozen, parts = load_frozen(tmp_path), networks()
    assert frozen.sha256 == sha256 and len(sha256) == 64
    with torch.no_grad():
        expected = parts["bottleneck"].encode(parts["encoder"](images(9, seed=5).float() / 127.5 - 1))
    assert torch.equal(frozen.encode(images(9, seed=5))["tokens"], expected["tokens"])
    assert frozen.encode(images())["tokens"].shape == (6, 4, 4)
    assert len(expected["tokens"].unique()) > 1
    for module in (frozen.encoder, frozen.bottleneck):
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_same_weights_have_the_same_hash_and_bytes(tmp_path):
    assert write_frozen(tmp_path / "1") == write_frozen(tmp_path / "2")
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_other_weights_have_another_hash(tmp_path):
    assert write_frozen(tmp_path / "1") != write_frozen(tmp_path / "2", seed=1)


def test_hash_does_not_know_the_decoder(tmp_path):
    """Two arms with one encoder and different decoders may share latents."""
    weak = replace(AUTOENCODER, decoder_channels=4, decoder_dropout=0.9)
    assert encoder_config(weak, BOTTLENECK) == encoder_config(AUTOENCODER, BOTTLENECK)


def test_moving_the_folder_changes_nothing(tmp_path):
    sha256 = write_frozen(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_frozen(tmp_path / "there").sha256 == sha256


@pytest.mark.parametrize("file", ["encoder.safetensors", "bottleneck.safetensors"])
@pytest.mark.parametrize("load", [load_encoder, load_frozen])
def test_flipped_bit_is_refused_with_both_hashes(tmp_path, file, load):
    sha256 = write_frozen(tmp_path)
    flip_byte(tmp_path / file, -1)
    message = refusal(tmp_path, load)
    hashes = [word.strip(";,") for word in message.split() if len(word.strip(";,")) == 16]
    assert sha256[:16] in hashes and len(set(hashes)) == 2


@pytest.mark.parametrize(("key", "value"), [("patch_size", 1), ("latent_channels", 5), ("decoder_dropout", 0.1), ("num_res_blocks", 2)])
def test_changed_config_is_refused(tmp_path, key, value):
    write_frozen(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["autoencoder"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    refusal(tmp_path)


def test_another_hash_in_the_config_is_refused_with_both(tmp_path):
    sha256 = write_frozen(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sha256": "0" * 64}))
    message = refusal(tmp_path)
    assert "0" * 16 in message and sha256[:16] in message


def test_files_of_two_encoders_do_not_mix(tmp_path):
    write_frozen(tmp_path / "1")
    write_frozen(tmp_path / "2", seed=1)
    (tmp_path / "2/encoder.safetensors").replace(tmp_path / "1/encoder.safetensors")
    refusal(tmp_path / "1")


@pytest.mark.parametrize("file", ["config.json", "encoder.safetensors", "bottleneck.safetensors", "probe.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damaged_file_is_one_line_that_names_it(tmp_path, file, damage):
    write_frozen(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage != "missing":
        (tmp_path / file).write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    assert str(tmp_path / file) in refusal(tmp_path)


@pytest.mark.parametrize(("file", "expected"), [("config.json", "dae-frozen-1"), ("probe.json", "dae-probe-1")])
def test_another_format_is_refused(tmp_path, file, expected):
    write_frozen(tmp_path)
    record = json.loads((tmp_path / file).read_text())
    assert record["format"] == expected
    (tmp_path / file).write_text(json.dumps({**record, "format": "dae-other-0"}))
    message = refusal(tmp_path)
    assert f"{tmp_path / file}: " in message and f"in format {expected}; run dvc repro" in message


def test_probe_that_encodes_to_other_tokens_is_refused(tmp_path):
    write_frozen(tmp_path)
    tokens = load_frozen(tmp_path).encode(images())["tokens"]
    save_probe(tmp_path, images(), {"tokens": (tokens + 1) % BOTTLENECK["num_codes"]})
    assert "0.0% of the probe's tokens" in refusal(tmp_path)


def test_probe_allows_for_another_machines_rounding(tmp_path):
    """One position of a hundred on the boundary between two codes is the same encoder; one in ten is not."""
    write_frozen(tmp_path)
    many = images(64)
    tokens = load_frozen(tmp_path).encode(many)["tokens"]
    for share, refused in ((0.005, False), (0.1, True)):
        moved = tokens.flatten().clone()
        moved[: int(share * moved.numel())] += 1
        save_probe(tmp_path, many, {"tokens": moved.reshape(tokens.shape)})
        if refused:
            refusal(tmp_path)
        else:
            load_frozen(tmp_path)


def test_pickled_frozen_is_checked_again_where_it_is_unpickled(tmp_path):
    """Ray hands it to tasks on other nodes."""
    data = pickle.dumps(load_frozen_at(tmp_path))
    assert torch.equal(pickle.loads(data).encode(images())["tokens"], load_frozen(tmp_path).encode(images())["tokens"])
    tokens = load_frozen(tmp_path).encode(images())["tokens"]
    save_probe(tmp_path, images(), {"tokens": (tokens + 1) % BOTTLENECK["num_codes"]})
    with pytest.raises(PipelineError, match="probe's tokens"):
        pickle.loads(data)


def test_require_names_both_hashes_and_the_place(tmp_path):
    frozen = load_frozen_at(tmp_path)
    frozen.require(frozen.sha256, "metrics/prior/dae-0.json")
    with pytest.raises(PipelineError) as error:
        frozen.require("f" * 64, "metrics/prior/dae-0.json")
    message = str(error.value)
    assert "metrics/prior/dae-0.json" in message and "f" * 16 in message and frozen.sha256[:16] in message and "\n" not in message


def load_frozen_at(folder):
    write_frozen(folder)
    return load_frozen(folder)


def test_what_stage1_writes_can_be_frozen_only_with_a_probe(tmp_path):
    parts = networks()
    save_encoder(tmp_path, encoder_config(AUTOENCODER, BOTTLENECK), parts["encoder"], parts["bottleneck"])
    load_encoder(tmp_path)
    assert "probe.json: no such file" in refusal(tmp_path)


@pytest.mark.parametrize(("shift", "is_accepted"), [(1e-4, True), (0.1, False)])
def test_the_probe_of_a_continuous_encoder_allows_for_rounding_and_no_more(tmp_path, shift, is_accepted):
    """``shift`` in standard deviations: about what another device's arithmetic makes of it, and another encoder."""
    config, bottleneck = replace(AUTOENCODER, encoder_channels_out=8), {"kind": "kl", "latent_channels": 4, "kl_weight": 0.1}
    torch.manual_seed(0)
    save_encoder(tmp_path, encoder_config(config, bottleneck), Encoder(config).eval(), build_bottleneck(bottleneck).eval())
    latents = load_encoder(tmp_path).encode(images())
    save_probe(tmp_path, images(), {name: values + shift * values.std() for name, values in latents.items()})
    if is_accepted:
        assert load_frozen(tmp_path).encode(images()).keys() == {"mean", "logvar"}
    else:
        assert "of the probe's logvar" in refusal(tmp_path)


@pytest.mark.parametrize("latents", [{"mean": (6, 4, 4, 4), "logvar": (6, 4, 4, 4)}, {"tokens": (6, 8, 8)}, {}])
def test_a_probe_of_another_kind_is_refused(tmp_path, latents):
    write_frozen(tmp_path)
    save_probe(tmp_path, images(), {name: torch.zeros(shape) for name, shape in latents.items()})
    assert "its probe has" in refusal(tmp_path)


def test_a_probe_without_images_is_refused(tmp_path):
    write_frozen(tmp_path)
    sha256 = save_weights(tmp_path / "probe.safetensors", {"tokens": torch.zeros(6, 4, 4)})
    (tmp_path / "probe.json").write_text(json.dumps({"format": PROBE_FORMAT, "weights_sha256": sha256}))
    assert "its probe has" in refusal(tmp_path)


@pytest.mark.parametrize("odd", [torch.zeros(0, 3, 16, 16).byte(), images()[:, :, :8], images().float(), torch.zeros(6).byte()])
def test_a_probe_of_no_images_or_of_others_proves_nothing_and_is_refused(tmp_path, odd):
    write_frozen(tmp_path)
    save_probe(tmp_path, odd, {"tokens": load_frozen(tmp_path).encode(images())["tokens"][: len(odd)]})
    assert "its probe has no images of this encoder's 16 pixels" in refusal(tmp_path)


def test_each_flipped_byte_of_the_probe_is_noticed(tmp_path):
    write_frozen(tmp_path)
    path = tmp_path / "probe.safetensors"
    for position in range(0, path.stat().st_size, 97):
        flip_byte(path, position)
        assert f"{path}: not the weights that were written" in refusal(tmp_path)
        flip_byte(path, position)
    load_frozen(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "probe.json"])
def test_every_missing_key_of_a_record_is_one_line_that_names_it(tmp_path, file):
    write_frozen(tmp_path)
    path = tmp_path / file
    whole = json.loads(path.read_text())
    for key in whole:
        for broken in ({name: value for name, value in whole.items() if name != key}, {**whole, key: 7}):
            path.write_text(json.dumps(broken))
            assert f"{path}: {key}: " in refusal(tmp_path)
    for section in ("autoencoder", "bottleneck") if file == "config.json" else ():
        for key in whole[section].keys() - {"decoder_block_dropout"}:  # files of before it was there lack it, and had none
            path.write_text(json.dumps({**whole, section: {name: value for name, value in whole[section].items() if name != key}}))
            message = refusal(tmp_path)
            assert str(path) in message and key in message
