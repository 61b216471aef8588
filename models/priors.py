"""The kinds of prior behind one interface, so that stages need not know which one they hold::

    prior.loss(latents, labels) -> (B,)          training: one loss per image; in evaluation mode the same every time
    prior.validation_metric                      what that loss is, for the validation's column
    prior.no_class                               the label that stands for 'no class'
    generate(prior, labels, random, settings)    draws latents as an encoder would give them

Latents are what ``encode`` of ``models.bottleneck`` gives, never normalised ones.
"""

from dataclasses import asdict

from torch import Tensor, nn

from models import dit, maskgit, transformer
from models.randomness import Randomness

KINDS = {
    "transformer": (transformer.Transformer, transformer.TransformerConfig),
    "maskgit": (maskgit.MaskGIT, maskgit.MaskGITConfig),
    "dit": (dit.DiT, dit.DiTConfig),
}
SAMPLERS = {
    "autoregressive": (transformer.Transformer, transformer.generate),
    "maskgit": (maskgit.MaskGIT, maskgit.generate),
    "euler": (dit.DiT, dit.generate),
    "heun": (dit.DiT, dit.generate),
    "stochastic": (dit.DiT, dit.generate),
}


def build_prior(config: dict) -> nn.Module:
    """The untrained prior that a config describes: ``{"kind": one of KINDS, ...fields of its config class}``."""
    fields = dict(config)
    module, config_class = KINDS[fields.pop("kind")]
    return module(config_class(**fields))


def prior_config(prior: nn.Module) -> dict:
    """The config from which ``build_prior`` rebuilds a prior."""
    kinds = {module: kind for kind, (module, _) in KINDS.items()}
    return {"kind": kinds[type(prior)], **asdict(prior.config)}


def generate(prior: nn.Module, labels: Tensor, random: Randomness, settings: dict) -> dict[str, Tensor]:
    """Draw latents, those of an image from its own row of ``random`` only.

    Args:
        labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
        settings: ``{"sampler": one of SAMPLERS, "guidance_scale": ..., ...the sampler's own}``.

    Raises:
        ValueError: when the sampler is not one of this prior's.
    """
    arguments = dict(settings)
    module, function = SAMPLERS[arguments["sampler"]]
    if not isinstance(prior, module):
        fitting = ", ".join(name for name, (module, _) in SAMPLERS.items() if isinstance(prior, module))
        raise ValueError(f"sampler {arguments['sampler']!r} does not fit a {type(prior).__name__}, which takes: {fitting}")
    if module is not dit.DiT:
        del arguments["sampler"]  # theirs is the only one
    return function(prior, labels, random, **arguments)
