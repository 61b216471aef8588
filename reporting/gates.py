"""Whether the question can be answered at all: four conditions on the baseline and a control, and what to raise where one fails.

A simpler latent cannot show its worth while the autoencoder is still learning, while freezing by itself costs too much, while the
autoencoder loses more than the prior does, or while samples are hardly images. A gate that fails or was not measured says so; it never
says that decoupling does not pay.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from reporting.arms import find_control
from sections import Gates

ADD_CONTROL = (
    "add a control to experiment.arms: an arm with the full decoder, no dropout and no noise whose encoder is frozen before the baseline's "
    "steps are over, such as refit"
)


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: what holds when it is passed.
        asks: what is measured, in words.
        value: of that; None where it cannot be measured.
        bound: "at most" or "at least", of the threshold.
        threshold: from the section ``gates`` of params.yaml.
        state: "passed", "failed" or "not measured".
        why: what its failure means; empty where it has not failed.
        advice: what to do; empty where it is passed.
    """

    name: str
    asks: str
    value: float | None
    bound: str
    threshold: float
    state: str
    why: str
    advice: str


def check_gates(summary: dict, arms: dict[str, dict], thresholds: Gates) -> list[dict]:
    """Hold every gate against the arms' means.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them; the first is the baseline.

    Returns:
        The four gates as trees, in the order in which they are worth mending.
    """
    means = {arm: tree["mean"] for arm, tree in summary["arms"].items()}
    gates = [*_of_control(summary, means, find_control(arms), thresholds), *_of_baseline(summary, means, thresholds)]
    return [asdict(gate) for gate in gates]


def _of_control(summary: dict, means: dict[str, dict], control: str | None, thresholds: Gates) -> list[Gate]:
    """What freezing alone costs: the control's reconstructions beside the baseline's."""
    distance, baseline, floor = summary["distance"], summary["baseline"], summary["floor"].get(summary["distance"])
    joint, samples = (means[baseline][f"{section}.{distance}"] for section in ("reconstruction_stage2", "samples"))
    halfway, decoupled = (means[control][f"reconstruction_{stage}.{distance}"] if control else None for stage in ("stage1", "stage2"))
    name, missing = control or "a control", "" if control else ADD_CONTROL
    return [
        _gate(
            "converged",
            f"distance of {name}'s reconstructions after stage 1 less that of {baseline}'s, divided by its samples'; each above the floor",
            None if control is None or floor is None else _unconverged(halfway, joint, samples, floor),
            ("at most", thresholds.max_unconverged),
            ("the autoencoder is still learning", "raise num_steps of every arm, in both stages alike", missing),
        ),
        _gate(
            "decoupling is cheap",
            f"distance of {name}'s reconstructions after stage 2, divided by that of {baseline}'s; each taken as the floor at least",
            max(decoupled, floor or 0) / max(joint, floor or 0) if control else None,
            ("at most", thresholds.max_decoupling_tax),
            ("even the full decoder loses too much by freezing the encoder", "raise num_steps of every arm", missing),
        ),
    ]


def _of_baseline(summary: dict, means: dict[str, dict], thresholds: Gates) -> list[Gate]:
    """Whether the baseline's prior is what its samples lack, and whether they are images at all."""
    distance, baseline, floor = summary["distance"], summary["baseline"], summary["floor"].get(summary["distance"])
    joint, samples = (means[baseline][f"{section}.{distance}"] for section in ("reconstruction_stage2", "samples"))
    return [
        _gate(
            "the prior is the bottleneck",
            f"distance of {baseline}'s samples less that of its reconstructions, divided by the samples'; each above the floor",
            None if floor is None else _prior_share(joint, samples, floor),
            ("at least", thresholds.min_prior_share),
            (
                "what the autoencoder loses weighs more than what the prior does, so that an easier latent cannot pay",
                "make the autoencoder better: raise num_steps of every arm, or autoencoder.channels",
                "",
            ),
        ),
        _gate(
            "samples are images",
            f"precision of {baseline}'s samples: the share that lies among real images",
            means[baseline].get("samples.precision"),
            ("at least", thresholds.min_precision),
            (
                "hardly a sample lies among real images, so that their distances rank blurs",
                "raise prior.training.num_steps, then the prior's size, or lower dataset.image_size",
                "",
            ),
        ),
    ]


def _gate(name: str, asks: str, value: float | None, limit: tuple[str, float], words: tuple[str, str, str]) -> Gate:
    """``words``: why it fails, what to do then, and what to do where it cannot be measured."""
    bound, threshold = limit
    why, advice, missing = words
    if value is None:
        return Gate(name, asks, None, bound, threshold, "not measured", "", missing or "run dvc repro reference evaluate")
    passed = value <= threshold if bound == "at most" else value >= threshold
    return Gate(name, asks, value, bound, threshold, *(("passed", "", "") if passed else ("failed", why, advice)))


def _unconverged(halfway: float, joint: float, samples: float, floor: float) -> float:
    """Difference of two reconstructions' distances, divided by the samples' distance; all above the floor.

    Not divided by the reconstructions' own distance: the better the autoencoder, the closer that is to 0, and the larger the quotient.
    """
    at_stake = _above(samples, floor)
    return abs(_above(halfway, floor) - _above(joint, floor)) / at_stake if at_stake else 0.0


def _prior_share(reconstruction: float, samples: float, floor: float) -> float:
    """What the prior adds, as a share of the samples' distance above the floor; 0 when samples are at the floor."""
    at_stake = _above(samples, floor)
    return (at_stake - _above(reconstruction, floor)) / at_stake if at_stake else 0.0


def _above(distance: float, floor: float) -> float:
    """Distance above the floor, at least 0. Reconstructions can be below the floor, as their own originals are in the reference."""
    return max(distance - floor, 0.0)
