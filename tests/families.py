"""Small parameters of every pair of bottleneck and prior that makes sense."""

import copy
from pathlib import Path

import yaml

import kinds
from params import Params
from tests.clone import PROJECT, RECIPE, SMALL, merged

SHAPE = {"num_layers": 2, "num_heads": 2, "width": 32}
BOTTLENECKS = {
    "vq": {"kind": "vq", "num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 3},
    "kl": {"kind": "kl", "latent_channels": 4, "kl_weight": 0.0001},
    "fsq": {"kind": "fsq", "levels": [4, 4]},
}
PRIORS = {
    "transformer": {"kind": "transformer", **SHAPE, "dropout": 0.0},
    "maskgit": {"kind": "maskgit", **SHAPE, "dropout": 0.0, "mask_schedule": "cosine"},
    "dit": {
        "kind": "dit", "size": None, **SHAPE, "patch_size": 1, "time_distribution": "logit_normal", "time_shift": 1.0, "latent": "sample",
    },
}  # fmt: skip
FLOW = {"num_steps": 4, "guidance_interval": [0.0, 1.0]}
SAMPLERS = {
    "autoregressive": {"sampler": "autoregressive", "temperature": 1.0, "top_k": None, "top_p": None},
    "maskgit": {"sampler": "maskgit", "num_steps": 4, "temperature": 1.0, "choice_temperature": 4.5},
    "euler": {"sampler": "euler", **FLOW},
    "heun": {"sampler": "heun", **FLOW},
    "stochastic": {"sampler": "stochastic", **FLOW, "churn": 0.5},
}
# prior -> the bottlenecks whose latents it models, and its samplers
PAIRS = {
    prior: ([name for name, bottleneck in kinds.BOTTLENECKS.items() if bottleneck.LATENTS == section.LATENTS], section.SAMPLERS)
    for prior, section in kinds.PRIORS.items()
}


def with_family(tree: dict, bottleneck: str, prior: str, sampler: str) -> dict:
    """Parameters ``tree`` with another bottleneck, prior and sampler."""
    shared = {name: tree["prior"][name] for name in ("class_conditional", "label_dropout", "training")}
    common = {name: tree["sample"][name] for name in ("num_images", "batch_size", "images_per_shard", "guidance_scale")}
    changes = {"bottleneck": BOTTLENECKS[bottleneck], "prior": PRIORS[prior] | shared, "sample": SAMPLERS[sampler] | common}
    return tree | copy.deepcopy(changes)


def small_params(bottleneck: str, prior: str, sampler: str, changes: dict | None = None) -> Params:
    """The parameters of tests/clone.py for one pair, in process; ``changes`` are merged in."""
    tree = merged(yaml.safe_load((PROJECT / "params.yaml").read_text()), SMALL)
    quick = {
        "experiment": {"arms": ["dae"]},
        "reconstruction_loss": {"perceptual": "none"},
        "prior": {"training": {"num_ray_workers": 0, "num_steps": 12, "validate_every_steps": 6}},
        "runtime": {"device": "cpu", "num_threads": 1},
    }
    return Params.model_validate(merged(with_family(merged(tree, quick), bottleneck, prior, sampler), changes or {}))


def write_source(root: Path) -> None:
    """The recipe that the parameters name."""
    (root / "sources").mkdir(parents=True)
    (root / "sources/small.yaml").write_text(RECIPE)
