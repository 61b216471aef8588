"""The interface that stages rely on, the same for every kind of prior."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
import yaml

import kinds
from models.metric import Metric
from models.priors import KINDS, SAMPLERS, build_prior, config_of, generate
from tests import families
from tests.clone import PROJECT
from tests.models.rows import Rows
from training.prior import prior_config

NUM_CODES, NUM_CHANNELS = 7, 2
FITTING = {kind: list(section.SAMPLERS) for kind, section in kinds.PRIORS.items()}
SETTINGS = {name: {key: value for key, value in settings.items() if key != "sampler"} for name, settings in families.SAMPLERS.items()}


def config(kind: str) -> dict:
    """Of a class-conditional one on 4 x 4 latents, as training makes it of params.yaml."""
    bottlenecks, samplers = families.PAIRS[kind]
    section = families.with_family(yaml.safe_load((PROJECT / "params.yaml").read_text()), bottlenecks[0], kind, samplers[0])["prior"]
    settings = kinds.PRIORS[kind].model_validate(section | {"class_conditional": True, "label_dropout": 0.1})
    of_latents = (NUM_CODES, None) if settings.LATENTS == kinds.TOKENS else (None, NUM_CHANNELS)
    latents = SimpleNamespace(grid=(4, 4), labels=[0, 1, 2], num_codes=of_latents[0], num_channels=of_latents[1])
    return prior_config(settings, latents)


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    prior = build_prior(config(kind))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if kinds.PRIORS[kind].LATENTS == kinds.CONTINUOUS:
        prior.set_statistics(torch.zeros(NUM_CHANNELS), torch.ones(NUM_CHANNELS))
    return prior


def test_the_schema_the_models_and_these_tests_know_the_same_kinds_and_samplers():
    assert {kind: list(entry.samplers) for kind, entry in KINDS.items()} == FITTING
    assert families.PRIORS.keys() == KINDS.keys() and families.SAMPLERS.keys() == set(SAMPLERS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prior_comes_back_from_its_config_through_json_and_its_weights(kind):
    prior = build(kind)
    described = json.loads(json.dumps(config_of(prior)))
    assert described == config(kind)
    restored = build_prior(described)
    restored.load_state_dict(prior.state_dict())
    latents = {"tokens": torch.randint(NUM_CODES, (5, 4, 4)), "mean": torch.randn(5, NUM_CHANNELS, 4, 4)}
    latents["logvar"] = torch.zeros_like(latents["mean"])
    labels = torch.tensor([0, 1, 2, -1, -1])
    assert torch.equal(prior.eval().loss(latents, labels), restored.eval().loss(latents, labels))
    assert prior.loss(latents, labels).shape == (5,) and prior.no_class == 3 and isinstance(prior.loss_metric, Metric)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluated_image_has_the_same_loss_whatever_batch_it_is_in(kind):
    prior, labels = build(kind).eval(), torch.tensor([0, 1, 2, -1, -1])
    latents = {"tokens": torch.randint(NUM_CODES, (5, 4, 4)), "mean": torch.randn(5, NUM_CHANNELS, 4, 4)}
    latents["logvar"] = torch.zeros_like(latents["mean"])
    parts = [prior.loss({name: tensor[s:e] for name, tensor in latents.items()}, labels[s:e], s) for s, e in ((0, 2), (2, 3), (3, 5))]
    assert torch.allclose(torch.cat(parts), prior.loss(latents, labels), atol=1e-5)


@pytest.mark.parametrize(("kind", "sampler"), [(kind, sampler) for kind, samplers in FITTING.items() for sampler in samplers])
def test_every_sampler_draws_latents_of_its_prior(kind, sampler):
    settings = {"sampler": sampler, "guidance_scale": 1.5, **SETTINGS[sampler]}
    latents = generate(build(kind).eval(), torch.tensor([0, 1, 3]), Rows(range(3)), settings)
    if kinds.PRIORS[kind].LATENTS == kinds.CONTINUOUS:
        assert list(latents) == ["mean"] and latents["mean"].shape == (3, NUM_CHANNELS, 4, 4) and latents["mean"].isfinite().all()
    else:
        assert list(latents) == ["tokens"] and latents["tokens"].shape == (3, 4, 4) and latents["tokens"].max() < NUM_CODES
    assert settings == {"sampler": sampler, "guidance_scale": 1.5, **SETTINGS[sampler]}


def test_each_setting_reaches_its_sampler():
    samplers = {name: function for kind in KINDS.values() for name, function in kind.samplers.items()}
    for sampler, settings in SETTINGS.items():
        accepted = set(inspect.signature(samplers[sampler]).parameters)
        assert {*settings, "guidance_scale"} <= accepted
    dit, labels = build("dit").eval(), torch.tensor([0, 1])
    drawn = [
        generate(dit, labels, Rows(range(2)), {"sampler": sampler, "guidance_scale": 1.0, **SETTINGS[sampler]})["mean"]
        for sampler in FITTING["dit"]
    ]
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_of_another_prior_is_refused_naming_those_that_fit(kind):
    for sampler in set(SAMPLERS) - set(FITTING[kind]):
        with pytest.raises(ValueError, match=f"'{sampler}' does not fit .* takes: {', '.join(FITTING[kind])}$"):
            generate(build(kind), torch.tensor([0]), Rows([0]), {"sampler": sampler})
