"""The kinds of prior behind one interface, so that stages need not know which one they hold::

    prior.loss(latents, labels, first=0) -> (B,) training: one loss per image; in evaluation mode the same every time, whatever
                                                 batch an image is in: ``first`` is the number of the first one
    prior.loss_metric                            what that loss is called and how it is read
    prior.no_class                               the label that stands for 'no class'
    generate(prior, labels, random, settings)    draws latents as an encoder would give them

Latents are what ``encode`` of ``models.bottleneck`` gives, never normalised ones.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from models import dit, maskgit, transformer
from models.randomness import Randomness


@dataclass(frozen=True)
class Kind:
    """A kind of prior.

    Attributes:
        samplers: name -> ``generate(prior, labels, random, **its settings)``.
        sizes: name of a size -> the fields of the config that it stands for.
    """

    module: type[nn.Module]
    config: type
    samplers: dict[str, Callable[..., dict[str, Tensor]]]
    sizes: dict[str, dict] = field(default_factory=dict)


KINDS = {
    "transformer": Kind(transformer.Transformer, transformer.TransformerConfig, {"autoregressive": transformer.generate}),
    "maskgit": Kind(maskgit.MaskGIT, maskgit.MaskGITConfig, {"maskgit": maskgit.generate}),
    "dit": Kind(dit.DiT, dit.DiTConfig, {name: partial(dit.generate, sampler=name) for name in dit.SAMPLERS}, dit.SIZES),
}
SAMPLERS = tuple(sampler for kind in KINDS.values() for sampler in kind.samplers)


def build_prior(config: dict) -> nn.Module:
    """The untrained prior that a config describes: ``{"kind": one of KINDS, ...fields of its config class}``."""
    fields = dict(config)
    kind = KINDS[fields.pop("kind")]
    return kind.module(kind.config(**fields))


def config_of(prior: nn.Module) -> dict:
    """The config from which ``build_prior`` rebuilds a prior."""
    return {"kind": _name_of_kind(prior), **asdict(prior.config)}


def generate(prior: nn.Module, labels: Tensor, random: Randomness, settings: dict) -> dict[str, Tensor]:
    """Draw latents, those of an image from its own row of ``random`` only.

    Args:
        labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
        settings: ``{"sampler": one of SAMPLERS, "guidance_scale": ..., ...the sampler's own}``.

    Raises:
        ValueError: when the sampler is not one of this prior's.
    """
    arguments, samplers = dict(settings), KINDS[_name_of_kind(prior)].samplers
    sampler = arguments.pop("sampler")
    if sampler not in samplers:
        raise ValueError(f"sampler {sampler!r} does not fit a {type(prior).__name__}, which takes: {', '.join(samplers)}")
    return samplers[sampler](prior, labels, random, **arguments)


def modelled_latents(config: dict, latents: dict[str, Tensor], random: Randomness) -> dict[str, Tensor]:
    """What a prior with this config is trained on, of encoded images: as ``generate`` would give them if it were perfect.

    Tokens are what they are. Of continuous latents it is the mean, or a sample of each, with noise from ``random``, as the config's
    ``latent`` says.
    """
    if config.get("latent") != "sample":
        return {name: values for name, values in latents.items() if name != "logvar"}
    mean, logvar = latents["mean"], latents["logvar"]
    return {"mean": mean + torch.exp(0.5 * logvar) * random.normal(*mean.shape[1:]).to(mean.device)}


def quick_settings(prior: nn.Module) -> dict:
    """Settings of ``generate`` for a first look: the first sampler of its kind, as it is when nothing else is said."""
    return {"sampler": next(iter(KINDS[_name_of_kind(prior)].samplers))}


def _name_of_kind(prior: nn.Module) -> str:
    return next(name for name, kind in KINDS.items() if kind.module is type(prior))
