"""What an exported generator is asked for: images, or one line that says what is wrong with an argument."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.generator import ALLOWED, Generator
from kinds import Sample, kinds_of
from tests.export.runs import CLASSES, SIZE


@pytest.fixture(scope="module")
def generators(folders):
    return {family: Generator(folder) for family, folder in folders.items()}


def test_settings_can_be_replaced_and_no_others_given(folders):
    generator = Generator(folders["dit"])
    assert generator.settings == {"sampler": "heun", "num_steps": 3, "guidance_interval": [0.0, 1.0], "guidance_scale": 2.0}
    assert not torch.equal(generator.sample(2, guidance_scale=1.0), generator.sample(2))
    assert generator.sample(0).shape == (0, 3, SIZE, SIZE)
    with pytest.raises(TypeError, match=r"no setting 'top_k'; .* guidance_interval, guidance_scale, num_steps, sampler"):
        generator.sample(2, top_k=3)


@pytest.mark.parametrize(
    ("family", "wrong", "message"),
    [
        ("transformer", {"num_images": -1}, "num_images must be a whole number from 0 on, got -1"),
        ("transformer", {"num_images": 2.0}, "num_images must be a whole number"),
        ("transformer", {"num_images": True}, "num_images must be a whole number"),
        ("transformer", {"seed": -1}, "seed must be a whole number from 0 on"),
        ("transformer", {"first": -3}, "first must be"),
        ("transformer", {"batch_size": 0}, "batch_size must be a whole number from 1 on"),
        ("transformer", {"temperature": 0}, "temperature must be a number from 1e-06 on, got 0"),
        ("transformer", {"temperature": float("nan")}, "temperature must be a number from 1e-06 on, got nan"),
        ("transformer", {"temperature": "1"}, "temperature must be"),
        ("transformer", {"temperature": 1e-300}, "temperature must be a number from 1e-06 on"),
        ("transformer", {"temperature": 10**400}, "temperature must be"),
        ("transformer", {"guidance_scale": 1e38}, "guidance_scale must be a number from 0 to 1000000"),
        ("transformer", {"top_k": 0}, "top_k must be"),
        ("transformer", {"top_p": 1.5}, "top_p must be"),
        ("transformer", {"guidance_scale": float("inf")}, "guidance_scale must be"),
        ("maskgit", {"guidance_scale": 2.0}, "guidance_scale other than 1 needs classes"),
        ("maskgit", {"num_steps": 0}, "num_steps must be"),
        ("maskgit", {"choice_temperature": -1}, "choice_temperature must be"),
        ("dit", {"guidance_interval": [0.6, 0.3]}, "guidance_interval must be two rising numbers"),
        ("dit", {"sampler": "ddim"}, "sampler must be one of"),
        ("dit", {"sampler": "autoregressive"}, "sampler 'autoregressive' does not fit a DiT"),
    ],
)
def test_arguments_are_held_to_the_rules_of_params(folders, family, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Generator(folders[family]).sample(**{"num_images": 1, **wrong})


def test_numbers_of_numpy_count_as_numbers(folders):
    generator = Generator(folders["transformer"])
    expected = generator.sample(2, 3, first=1, batch_size=2, labels=[1, 0], temperature=0.5)
    i = np.int64
    found = generator.sample(i(2), i(3), first=i(1), batch_size=i(2), labels=np.array([1, 0]), temperature=np.float32(0.5))
    assert torch.equal(found, expected)
    assert torch.equal(generator.sample(2, 3, first=1, batch_size=2, labels=torch.tensor([1, 0]), temperature=0.5), expected)


NUMBERS = st.integers(-2, 3) | st.sampled_from([2**63, 10**400, 1e-300, 1e-6, 1e6, 1e38, 1e300]) | st.floats()
ODD = (
    NUMBERS
    | st.none()
    | st.booleans()
    | st.text(max_size=2)
    | st.lists(st.integers(-1, 2) | st.sampled_from(CLASSES) | st.none(), max_size=3)
)
COUNTS = ("num_images", "batch_size", "first")  # how much is computed
ARGUMENTS = {name: st.integers(-1, 3) | ODD.filter(lambda value: not isinstance(value, int) or value < 4) for name in COUNTS}
ARGUMENTS |= {name: ODD for name in ("seed", "labels", *(name for name in ALLOWED if name != "num_steps"))}
ARGUMENTS["num_steps"] = ARGUMENTS["num_images"]


@pytest.mark.parametrize("family", ["transformer", "maskgit", "dit"])
@given(given=st.fixed_dictionaries({}, optional=ARGUMENTS))
def test_any_arguments_give_images_or_are_refused(generators, family, given):
    generator = generators[family]
    given = {name: value for name, value in given.items() if name not in ALLOWED or name in generator.settings}
    given = {"num_images": 1, "batch_size": 1, **given}
    try:
        images = generator.sample(**given)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert images.shape == (given["num_images"], 3, SIZE, SIZE) and images.dtype == torch.uint8


@pytest.mark.parametrize("family", ["transformer", "dit"])
def test_what_is_no_tensor_of_images_or_latents_is_refused(folders, family):
    generator = Generator(folders[family])
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    for wrong in (images.numpy(), [1], None, images[:0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            generator.encode(wrong)
    latents = generator.encode(images)
    for wrong in (None, [], images, {name: tensor.numpy() for name, tensor in latents.items()}):
        with pytest.raises(ValueError, match="latents must have"):
            generator.decode(wrong)
    kinds = (torch.float32, torch.bool, torch.complex64) if family == "transformer" else (torch.int64, torch.bool)
    for kind in kinds:
        with pytest.raises(ValueError, match=r"whole numbers from 0|not finite numbers"):
            generator.decode({name: tensor.to(kind) for name, tensor in latents.items()})
    narrower = torch.uint8 if family == "transformer" else torch.float64
    same = generator.decode({name: tensor.to(narrower) for name, tensor in latents.items()} | {"other": 1})
    assert torch.equal(same, generator.decode(latents))
    if family == "dit":
        with pytest.raises(ValueError, match="latents are not finite numbers; if they were sampled, lower guidance_scale"):
            generator.decode({"mean": latents["mean"] * torch.nan})


def test_every_setting_of_a_sampler_has_a_rule():
    samplers = kinds_of(Sample, "sampler").values()
    settings = {name for section in samplers for name in section.model_fields}
    assert settings - {"num_images", "batch_size", "images_per_shard"} == ALLOWED.keys()


def test_images_and_latents_of_other_shapes_are_refused(folders):
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    for family in ("transformer", "dit"):
        generator = Generator(folders[family])
        for wrong in (images.float(), images[0], images[:, :, :-1], images[:, :1]):
            with pytest.raises(ValueError, match=f"images must be uint8 .B, 3, {SIZE}, {SIZE}., got"):
                generator.encode(wrong)
        latents = generator.encode(images)
        wrong = [{}, {"mean": torch.zeros(1, 2, 2)}, {name: tensor[..., :-1] for name, tensor in latents.items()}]
        for latent in wrong:
            with pytest.raises(ValueError, match="latents must have"):
                generator.decode(latent)
    generator = Generator(folders["transformer"])
    for value in (-1, 16):
        with pytest.raises(ValueError, match="whole numbers from 0 to 15"):
            generator.decode({"tokens": torch.full((1, 4, 4), value)})
