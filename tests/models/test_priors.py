"""The interface that stages rely on, the same for every kind of prior."""

import inspect
import json

import pytest
import torch

from kinds import PRIORS
from models.metric import Metric
from models.priors import KINDS, SAMPLERS, build_prior, generate, prior_config
from tests.models.rows import Rows

COMMON = {"num_classes": 3, "num_layers": 1, "num_heads": 2, "width": 16, "latent_size": 4, "label_dropout": 0.1}
CONFIGS = {
    "transformer": {"kind": "transformer", "num_codes": 7, "dropout": 0.1, **COMMON},
    "maskgit": {"kind": "maskgit", "num_codes": 7, "dropout": 0.1, "mask_schedule": "cosine", **COMMON},
    "dit": {
        "kind": "dit",
        "latent_channels": 2,
        "patch_size": 2,
        "time_distribution": "uniform",
        "time_shift": 1.5,
        "latent": "sample",
        **COMMON,
    },
}
SETTINGS = {
    "autoregressive": {"temperature": 0.9, "top_k": 5, "top_p": None},
    "maskgit": {"num_steps": 3, "temperature": 1.0, "choice_temperature": 2.0},
    "euler": {"num_steps": 3, "guidance_interval": [0.0, 1.0]},
    "heun": {"num_steps": 3, "guidance_interval": [0.2, 0.8]},
    "stochastic": {"num_steps": 3, "guidance_interval": [0.0, 1.0], "churn": 0.5},
}
FITTING = {kind: list(section.SAMPLERS) for kind, section in PRIORS.items()}


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    prior = build_prior(CONFIGS[kind])
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if kind == "dit":
        prior.set_statistics(torch.zeros(2), torch.ones(2))
    return prior


def test_the_schema_and_the_models_know_the_same_kinds_and_samplers():
    assert {kind: list(entry.samplers) for kind, entry in KINDS.items()} == FITTING and KINDS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_prior_comes_back_from_its_config_through_json_and_its_weights(kind):
    prior = build(kind)
    config = json.loads(json.dumps(prior_config(prior)))
    assert config == CONFIGS[kind]
    restored = build_prior(config)
    restored.load_state_dict(prior.state_dict())
    latents = {"tokens": torch.randint(7, (5, 4, 4)), "mean": torch.randn(5, 2, 4, 4), "logvar": torch.zeros(5, 2, 4, 4)}
    labels = torch.tensor([0, 1, 2, -1, -1])
    assert torch.equal(prior.eval().loss(latents, labels), restored.eval().loss(latents, labels))
    assert prior.loss(latents, labels).shape == (5,) and prior.no_class == 3 and isinstance(prior.loss_metric, Metric)


@pytest.mark.parametrize(("kind", "sampler"), [(kind, sampler) for kind, samplers in FITTING.items() for sampler in samplers])
def test_every_sampler_draws_latents_of_its_prior(kind, sampler):
    settings = {"sampler": sampler, "guidance_scale": 1.5, **SETTINGS[sampler]}
    latents = generate(build(kind).eval(), torch.tensor([0, 1, 3]), Rows(range(3)), settings)
    if kind == "dit":
        assert list(latents) == ["mean"] and latents["mean"].shape == (3, 2, 4, 4) and latents["mean"].isfinite().all()
    else:
        assert list(latents) == ["tokens"] and latents["tokens"].shape == (3, 4, 4) and latents["tokens"].max() < 7
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


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_sampler_of_another_prior_is_refused_naming_those_that_fit(kind):
    for sampler in set(SAMPLERS) - set(FITTING[kind]):
        with pytest.raises(ValueError, match=f"'{sampler}' does not fit .* takes: {', '.join(FITTING[kind])}$"):
            generate(build(kind), torch.tensor([0]), Rows([0]), {"sampler": sampler})
