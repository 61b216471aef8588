"""Whether the question can be answered at all: six conditions, and what to raise or to add where one fails or cannot be measured.

A difference between arms means nothing where a part is out of order, where samples are no images, or all alike, or as good as real ones,
where the baseline is a straw man, or where no latent could have made a difference. A gate that fails or was not measured says so; it
never says that decoupling does not pay.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from reporting.landmarks import MEASURE, Landmarks
from reporting.pairing import floor_of, mean_excess
from reporting.statistics import MARGIN
from sections import Gates

# An edge of the joint training may be better than all inside by no more than what does not matter.
MIN_EDGE_RATIO = math.exp(-MARGIN)


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: what holds when it is passed.
        asks: what is measured, in words.
        value: of that; None where it cannot be measured.
        bound: "at most" or "at least", of the threshold.
        threshold: from the section ``gates`` of params.yaml, or what follows from the margin, or 0.
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


def check_gates(summary: dict, landmarks: Landmarks, named: list[str], thresholds: Gates) -> list[dict]:
    """Hold every gate against what was measured.

    Args:
        summary: what ``reporting.summary.collect`` returned, with the baseline that ``landmarks`` has.
        named: the arms that the answer names: the baseline, and the candidate that it is told by.

    Returns:
        The six gates as trees, in the order in which they are worth mending.
    """
    gates = [
        _parts_work(summary, named),
        *_of_samples(summary, thresholds),
        _can_be_told(summary, thresholds),
        _is_best_of_its_kind(landmarks),
        _prior_matters(summary, thresholds),
    ]
    return [asdict(gate) for gate in gates]


def _parts_work(summary: dict, named: list[str]) -> Gate:
    alarms = [alarm for alarm in summary["alarms"] if alarm["arm"] in named]
    first = alarms[0] if alarms else {"stage": "", "arm": "", "seed": "", "signature": "", "advice": ""}
    what = f"{first['stage']} of {first['arm']}, seed {first['seed']}, raised an alarm: {first['signature'].replace('_', ' ')}"
    asks = f"number of alarms in {' and '.join(named)}"
    return _gate("the parts work", asks, len(alarms), ("at most", 0), (what, first["advice"], MEASURE))


def _of_samples(summary: dict, thresholds: Gates) -> list[Gate]:
    """Whether the baseline's samples are images, and whether they are not all alike."""
    baseline, mean = summary["baseline"], summary["arms"][summary["baseline"]]["mean"]
    recall, real_recall = mean.get("samples.recall"), summary["floor"].get("recall")
    return [
        _gate(
            "samples are images",
            f"precision of {baseline}'s samples: the share that lies among real images",
            mean.get("samples.precision"),
            ("at least", thresholds.min_precision),
            (
                "hardly a sample lies among real images, so that their distances rank blurs",
                "raise prior.training.num_steps, then the prior's size, or lower dataset.image_size",
                MEASURE,
            ),
        ),
        _gate(
            "samples are varied",
            f"recall of {baseline}'s samples, the share of real images that they come near, divided by that of real training images",
            None if recall is None or not real_recall else recall / real_recall,
            ("at least", thresholds.min_recall_share),
            (
                "the prior is starved or has collapsed: its samples cover little of what real images show, so that decoders are ranked by "
                "what they forgive",
                "raise prior.training.num_steps",
                MEASURE,
            ),
        ),
    ]


def _can_be_told(summary: dict, thresholds: Gates) -> Gate:
    key = f"samples.{summary['distance']}"
    floor = floor_of(summary, key)
    nearest, arm = min((run[key], arm) for arm, tree in summary["arms"].items() for run in tree["runs"].values())
    return _gate(
        "samples can be told from real images",
        f"the smallest distance of any run's samples, here {arm}'s, divided by the floor, which real training images score",
        nearest / floor if floor else None,
        ("at least", thresholds.min_distance_over_floor),
        (
            "by so many images samples are as good as real ones, so that what is left to compare is chance",
            "raise evaluation.num_images and sample.num_images",
            MEASURE,
        ),
    )


def _is_best_of_its_kind(landmarks: Landmarks) -> Gate:
    edge = min(landmarks.edges, key=landmarks.edges.get, default=None)
    side, other = ("fewer", "more") if edge == landmarks.fewest else ("more", "fewer")
    return _gate(
        "the baseline is the best of its kind",
        "distance of samples above the floor: that of joint training for the fewest or the most steps, whichever is less, divided by the "
        "least of all other joint training",
        landmarks.edges[edge] if edge else None,
        ("at least", MIN_EDGE_RATIO),
        (
            f"{edge} draws better samples than all joint training for {other} steps, so that the best is not found yet",
            f"add joint training for still {side} steps than {edge}'s to experiment.arms",
            landmarks.advice,
        ),
    )


def _prior_matters(summary: dict, thresholds: Gates) -> Gate:
    baseline, distance = summary["baseline"], summary["distance"]
    samples, perfect = (mean_excess(summary, baseline, f"{section}.{distance}") for section in ("samples", "perfect_prior_stage2"))
    share = None
    if samples is not None and perfect is not None:
        share = (samples - perfect) / samples if samples > 0 else 0.0  # at the floor no prior can be better
    return _gate(
        "the prior matters",
        f"what {baseline}'s samples lose to a perfect prior with the same decoder, divided by what they lose to real images",
        share,
        ("at least", thresholds.min_prior_share),
        (
            "what the autoencoder loses weighs more than what the prior does, so that no latent could have paid",
            "make the autoencoder better: raise num_steps of every arm, or autoencoder.channels",
            MEASURE,
        ),
    )


def _gate(name: str, asks: str, value: float | None, limit: tuple[str, float], words: tuple[str, str, str]) -> Gate:
    """``words``: why it fails, what to do then, and what to do where it cannot be measured."""
    bound, threshold = limit
    why, advice, missing = words
    if value is None:
        return Gate(name, asks, None, bound, threshold, "not measured", "", missing)
    passed = value <= threshold if bound == "at most" else value >= threshold
    return Gate(name, asks, value, bound, threshold, *(("passed", "", "") if passed else ("failed", why, advice)))
