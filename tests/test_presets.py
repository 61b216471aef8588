"""Presets: each stands for a whole, valid params file whose models fit together. They are built on the meta device, so size is free."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import vgg16

import losses.perceptual
from flows.overlay import compose, leaves_nothing_out
from ingest.sources import open_source
from losses.reconstruction import AutoencoderLoss
from models.autoencoder import AutoencoderConfig, Decoder, Encoder
from models.bottleneck import build_bottleneck
from models.discriminator import PatchDiscriminator
from models.priors import build_prior
from models.transformer import TransformerConfig
from params import Params, load_params
from sections import NoiseOnLatents
from training.autoencoder import autoencoder_config, bottleneck_config
from training.operations import count_operations
from training.prior import prior_config

PROJECT = Path(__file__).parent.parent
PRESETS = {path.stem: path for path in sorted((PROJECT / "presets").glob("*.yaml"))}
NUM_CLASSES = 10  # of any labelled data set
LANDMARKS = {"joint_quarter": 1 / 4, "joint_half": 1 / 2, "joint_double": 2}  # joint training for so many times the baseline's steps
# Small networks learn as well without a discriminator, and that of the installation check is there to be run.
WITH_ADVERSARY = {"smoke", "faces-fair-vq", "cifar10", "cifar10-dit", "faceshq-256", "ffhq-256-dit"}
TEXTS = {name: compose(PRESETS["default"], path) for name, path in PRESETS.items()}
DEFAULT = yaml.safe_load(TEXTS["default"])

each_preset = pytest.mark.parametrize("name", PRESETS)


def params_of(name: str) -> Params:
    return load_params(PRESETS[name], TEXTS[name])


def arm_config(params: Params, arm: str) -> AutoencoderConfig:
    """Stage 1's autoencoder of an arm, as training/autoencoder.py builds it."""
    settings = params.arms[arm].stage1
    bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, settings))
    return autoencoder_config(params.autoencoder, params.dataset.image_size, bottleneck, settings)


def prior_of(params: Params, latent_size: int) -> torch.nn.Module:
    """The prior of a preset, as training/prior.py builds it."""
    bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, params.arms["baseline"].stage1))
    kind = {
        "num_codes": getattr(bottleneck, "num_codes", None),
        "num_channels": None if bottleneck.is_discrete else bottleneck.latent_channels,
    }
    latents = SimpleNamespace(grid=(latent_size, latent_size), labels=list(range(NUM_CLASSES)), **kind)
    return build_prior(prior_config(params.prior, latents))


def num_operations(params: Params, arm: str, stage: str) -> int:
    """Of all steps of a stage: autoencoder and losses, but not the bottleneck, whose share is small. Nothing is computed."""
    settings, side = getattr(params.arms[arm], stage), params.dataset.image_size
    full, config = arm_config(params, "baseline"), arm_config(params, arm if stage == "stage1" else "baseline")
    loss_terms = AutoencoderLoss(params.reconstruction_loss, settings, None, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder, decoder = Encoder(full), Decoder(config)
        shape = params.reconstruction_loss.discriminator_channels, params.reconstruction_loss.discriminator_num_layers
        modules = {"discriminator": PatchDiscriminator(*shape)} if settings.num_adversarial_steps else {}
        images, latents = (torch.empty(1, channels, size, size) for channels, size in ((3, side), (full.latent_channels, full.latent_size)))
        loss_terms.discriminator = modules.get("discriminator")

        def loss(batch, step):
            z = encoder(images)[:, : full.latent_channels] if stage == "stage1" else latents
            return loss_terms(decoder(z), images, decoder.last_layer, step)

        objective = SimpleNamespace(modules={"decoder": decoder, **modules}, examples=SimpleNamespace(batch=lambda indices: {}), loss=loss)
        return count_operations(objective, getattr(params, stage).batch_size, loss_terms.phases(settings.num_steps))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_documented_presets_are_there():
    faces = {"default", "smoke", "faces-dit", "faces-fair", "faces-fair-small", "faces-fair-vq"}
    assert set(PRESETS) == faces | {"cifar10", "cifar10-dit", "cifar10-fair", "faceshq-256", "ffhq-256-dit"}


def test_the_default_preset_is_params_yaml():
    assert yaml.safe_load(PRESETS["default"].read_text()) == yaml.safe_load((PROJECT / "params.yaml").read_text())


@each_preset
def test_its_values_are_valid(name):
    params = params_of(name)
    for arm in params.arms:  # also those that it does not run
        params.check_arm(arm)


@each_preset
def test_its_keys_are_in_the_order_of_the_default(name):
    """But for its arms, and sections of another kind."""
    tree = yaml.safe_load(TEXTS[name])
    assert list(tree) == list(DEFAULT)
    kinds = [
        section
        for section, key in (("bottleneck", "kind"), ("prior", "kind"), ("sample", "sampler"))
        if tree[section][key] != DEFAULT[section][key]
    ]
    for section in tree.keys() - {"arms", *kinds}:
        assert list(tree[section]) == list(DEFAULT[section])
    for arm, stages in tree["arms"].items():
        assert [list(stages[stage]) for stage in stages] == [list(DEFAULT["arms"][arm][stage]) for stage in DEFAULT["arms"][arm]]


def lines_that_change_nothing(default, preset, path: tuple[str, ...] = ()) -> list[str]:
    """Dotted keys of a preset without which it would stand for the same; an arm's name alone says that the arm is there."""
    if len(path) == 1 and any(key in preset and preset[key] != default[key] for key in ("kind", "sampler") if key in default):
        return []
    if not isinstance(default, dict) or not isinstance(preset, dict) or (path[:1] == ("arms",) and len(path) > 3):
        return [".".join(path)] if preset == default else []
    if not preset and len(path) != 2:
        return [".".join(path)]
    return [key for name, value in preset.items() for key in lines_that_change_nothing(default[name], value, (*path, name))]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "default"])
def test_it_says_nothing_that_the_default_says(name):
    assert lines_that_change_nothing(DEFAULT, yaml.safe_load(PRESETS[name].read_text())) == []


def test_of_the_presets_only_the_default_is_whole():
    assert [name for name, path in PRESETS.items() if leaves_nothing_out(DEFAULT, yaml.safe_load(path.read_text()))] == ["default"]


@each_preset
def test_its_text_keeps_its_own_header_and_comments_and_the_defaults_elsewhere(name):
    text, own = TEXTS[name], PRESETS[name].read_text()
    assert text.startswith(f"{own.partition(chr(10) * 2)[0]}\n\nexperiment:\n")
    comments = [line[line.index("# ") :] for line in own.splitlines() if "# " in line]
    assert comments and [comment for comment in comments if comment not in text] == []
    for comment in ("gates:                          # whether this budget", "crop: center                  # center: shorter side"):
        assert comment in text
    assert text.endswith("\n") and not [line for line in text.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if "256" in name else []) for name in PRESETS])
def test_every_arm_costs_as_many_operations_as_the_baseline(name, monkeypatch):
    params = params_of(name)
    no_download = {f"features.{key}": value for key, value in vgg16(weights=None).features.state_dict().items()}
    monkeypatch.setattr(losses.perceptual, "_download_vgg", lambda: no_download)
    counted, known = {}, {}  # arms share stages
    for arm, settings in params.arms.items():
        keys = [
            (stage, section.num_steps, section.num_adversarial_steps, settings.stage1.channels_multiplier if stage == "stage1" else 1.0)
            for stage, section in (("stage1", settings.stage1), ("stage2", settings.stage2))
        ]
        known |= {key: num_operations(params, arm, key[0]) for key in keys if key not in known}
        counted[arm] = sum(known[key] for key in keys)
    for arm, count in counted.items():
        if arm not in LANDMARKS:
            assert count == pytest.approx(counted["baseline"], rel=0.02), arm


@each_preset
def test_the_decoder_that_draws_is_trained_against_the_discriminator_as_long_in_every_arm(name):
    params = params_of(name)
    assert params.reconstruction_loss.discriminator_head_start > 0
    updates = {
        arm: settings.stage2.num_adversarial_steps + (settings.stage1.num_adversarial_steps if settings.stage2.start == "stage1" else 0)
        for arm, settings in params.arms.items()
        if arm not in LANDMARKS
    }
    assert len(set(updates.values())) == 1
    assert (updates["baseline"] > 0) == (name in WITH_ADVERSARY)


@each_preset
def test_landmarks_are_the_baseline_for_other_numbers_of_steps(name):
    arms = params_of(name).arms
    baseline = arms["baseline"]
    for arm in arms.keys() & LANDMARKS.keys():
        changes = {key: LANDMARKS[arm] * getattr(baseline.stage1, key) for key in ("num_steps", "num_adversarial_steps")}
        assert arms[arm] == baseline.model_copy(update={"stage1": baseline.stage1.model_copy(update=changes)})


# arm -> the share of the baseline's steps after which its encoder is frozen, what weakens stage 1, and how stage 2 starts
FROZEN = {
    "dae": (1 / 2, {"channels_multiplier": 0.5}, "fresh"),
    "dae_long": (1, {"channels_multiplier": 0.5}, "fresh"),
    "refit": (1 / 2, {}, "fresh"),
    "continued": (1 / 2, {}, "stage1"),
    "early_quarter": (1 / 4, {}, "stage1"),
    "early_eighth": (1 / 8, {}, "stage1"),
    "dae_dropout": (1 / 2, {"dropout": 0.5}, "stage1"),
    "dropout_quarter": (1 / 4, {"dropout": 0.5}, "stage1"),
    "dropout_eighth": (1 / 8, {"dropout": 0.5}, "stage1"),
    "dae_block_dropout": (1 / 2, {"block_dropout": 0.2}, "stage1"),
    "dae_noise": (1 / 2, {"latent_noise": NoiseOnLatents(kind="interpolated", strength=1.0)}, "stage1"),
    "robust": (1 / 2, {}, "stage1"),
    "robust_quarter": (1 / 4, {}, "stage1"),
    "robust_eighth": (1 / 8, {}, "stage1"),
}


@each_preset
def test_each_arm_is_what_its_name_says(name):
    arms = params_of(name).arms
    baseline = arms["baseline"].stage1
    assert {"baseline", "dae", "refit"} <= arms.keys() <= {"baseline", *LANDMARKS, *FROZEN, "joint_noise", "compressed"}
    for arm in arms.keys() & FROZEN.keys():
        share, weakness, start = FROZEN[arm]
        steps = {key: share * getattr(baseline, key) for key in ("num_steps", "num_adversarial_steps")}
        assert arms[arm].stage1 == baseline.model_copy(update=steps | weakness), arm
        assert (arms[arm].stage2.start, arms[arm].stage2.learning_rate_factor) == (start, 0.3 if start == "stage1" else 1.0)
        assert (arms[arm].stage2.latent_noise is not None) == arm.startswith("robust")
    noises = {arms[arm].stage2.latent_noise for arm in arms if arm.startswith("robust")}
    if noises:
        assert noises == {arms["joint_noise"].stage1.latent_noise}
        assert arms["joint_noise"].stage1 == baseline.model_copy(update={"latent_noise": noises.pop()})
    if "compressed" in arms:
        assert arms["compressed"].stage1.bottleneck and not baseline.bottleneck


@each_preset
def test_its_header_states_what_a_reader_asks(name):
    if name == "default":
        return  # its header is that of params.yaml
    header = PRESETS[name].read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("Command", "Hardware", "Time", "Result", f"make preset NAME={name}", "make run"):
        assert word in header
    assert ("not run by the authors" in header.lower()) != ("Run here" in header)


@each_preset
def test_encoder_bottleneck_and_every_arms_decoders_fit_together(name):
    params = params_of(name)
    side = params.dataset.image_size
    for arm, settings in params.arms.items():
        config = arm_config(params, arm)
        bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, settings.stage1))  # on the CPU: autocast knows no meta device
        full = autoencoder_config(params.autoencoder, side, bottleneck)
        with torch.device("meta"):
            images = torch.empty(2, 3, side, side)
            z = Encoder(config)(images)
            auxiliary, decoder = Decoder(config), Decoder(full)
        latents = bottleneck.encode(torch.zeros(z.shape))
        decoded = bottleneck.decode(latents).to("meta")
        grid = (config.latent_size, config.latent_size)
        assert z.shape == (2, bottleneck.encoder_channels, *grid) and decoded.shape == (2, bottleneck.latent_channels, *grid)
        assert all(values.shape == ((2, *grid) if bottleneck.is_discrete else decoded.shape) for values in latents.values())
        assert auxiliary(decoded).shape == decoder(decoded).shape == images.shape
        if settings.stage2.start == "stage1":
            assert {k: v.shape for k, v in auxiliary.state_dict().items()} == {k: v.shape for k, v in decoder.state_dict().items()}
        assert (num_parameters(auxiliary) < num_parameters(decoder)) == (arm in ("dae", "dae_long"))


@each_preset
def test_attention_acts_at_resolutions_that_exist(name):
    params = params_of(name)
    settings = params.autoencoder
    first = params.dataset.image_size // settings.patch_size
    assert set(settings.attention_resolutions) <= {first // 2**level for level in range(len(settings.channel_multipliers))}


@each_preset
def test_the_discriminator_judges_more_than_one_patch(name):
    params = params_of(name)
    loss = params.reconstruction_loss
    with torch.device("meta"):
        discriminator = PatchDiscriminator(loss.discriminator_channels, loss.discriminator_num_layers)
        logits = discriminator(torch.empty(2, 3, params.dataset.image_size, params.dataset.image_size))
    assert logits.shape[:2] == (2, 1)
    assert min(logits.shape[2:]) > 1


@each_preset
def test_the_prior_covers_the_whole_latent(name):
    params = params_of(name)
    config = arm_config(params, "baseline")
    with torch.device("meta"):
        prior = prior_of(params, config.latent_size)
        labels = torch.empty(2, dtype=torch.int64)
        if params.prior.kind == "dit":
            z = torch.empty(2, config.latent_channels, config.latent_size, config.latent_size)
            assert prior(z, torch.empty(2), labels).shape == z.shape
            assert prior.loss({"mean": z, "logvar": z}, labels).shape == (2,)
        else:
            tokens = torch.empty(2, config.latent_size, config.latent_size, dtype=torch.int64)
            assert prior(tokens.flatten(1)[:, :-1], labels).shape == (2, config.latent_size**2, params.bottleneck.num_codes)
            assert prior.loss({"tokens": tokens}, labels).shape == (2,)
    assert prior.config.num_classes == (NUM_CLASSES if params.prior.class_conditional else 0)


@pytest.mark.parametrize("name", ["default", "smoke", "faces-dit", "faces-fair", "faces-fair-small", "faces-fair-vq"])
def test_a_drawn_source_has_images_for_training_and_evaluation(name):
    params = params_of(name)
    source = open_source(PROJECT / params.dataset.source, params.dataset.split)
    assert len(source.splits["all"]) >= params.dataset.num_validation_images + params.evaluation.num_images
    assert params.dataset.num_validation_images >= params.evaluation.num_images


def test_faceshq_has_the_sizes_of_the_published_models():
    """VQGAN for faces: 29.3 M encoder, 42.5 M decoder; GPT with 24 layers of width 1024: 12 x 24 x 1024² = 302 M and its embeddings."""
    params = params_of("faceshq-256")
    config = arm_config(params, "baseline")
    with torch.device("meta"):
        encoder, decoder, bottleneck = Encoder(config), Decoder(config), build_bottleneck(params.bottleneck.model_dump())
        weak = Decoder(arm_config(params, "dae"))
        prior = prior_of(params, config.latent_size)
    assert config.latent_size == 16
    assert num_parameters(encoder) == pytest.approx(29.3e6, rel=0.005)
    assert num_parameters(decoder) == pytest.approx(42.45e6, rel=0.005)
    assert num_parameters(bottleneck) == 1024 * 256
    assert num_parameters(encoder) + num_parameters(decoder) + num_parameters(bottleneck) == pytest.approx(72e6, rel=0.01)
    assert num_parameters(weak) == pytest.approx(num_parameters(decoder) / 4, rel=0.05)
    assert num_parameters(prior) == pytest.approx(304.4e6, rel=0.005)
    assert prior.config == TransformerConfig(1024, 16, 0, 24, 16, 1024, 0.1, 0.0)


def test_faceshq_learns_at_tamings_rate():
    params = params_of("faceshq-256")
    for settings in (params.stage1, params.stage2, params.prior.training):
        assert settings.learning_rate == pytest.approx(4.5e-6 * settings.batch_size)
