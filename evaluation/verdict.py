"""The answer: decouple (and how weakly), do not, cannot tell yet (how many more seeds), or not testable at this budget (what to raise).

It rests on the Fréchet distance of samples, paired by seed and decided at the looks of evaluation/statistics.py; on the gates of
evaluation/gates.py, without which a difference means nothing; and on further judges, which do without the distance's network.
Means and standard deviations over seeds are shown elsewhere, and decide nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.budget import count_budgets, describe_budgets
from evaluation.gates import check_gates
from evaluation.statistics import LOOKS, Paired, decide, log_ratios, next_look, num_more_seeds, pair, worth
from evaluation.summary import EXPECTATIONS, decimals, describe, format_duration
from sections import Gates

JUDGES = ("samples.swd_laplacian", "samples.factor_tv")  # beside the distance; smaller is better; each is heard where it was measured
MAX_LOG = 700.0  # whose exponential is still a number: two odd seeds make any interval


@dataclass(frozen=True)
class Comparison:
    """Samples of an arm against those of the baseline.

    Attributes:
        is_candidate: whether the arm is decoupled and weak, so that it can be what the answer names.
        paired: log ratios of the distance.
        decision: "better", "worse", "no difference" (none that matters) or "undecided".
        judges: metric -> its log ratios and its opinion: "agrees", "disagrees" or "no opinion".
    """

    arm: str
    is_candidate: bool
    paired: Paired
    decision: str
    judges: dict[str, tuple[Paired, str]]

    @property
    def num_more_seeds(self) -> int:
        return num_more_seeds(self.paired) if self.decision == "undecided" else 0

    @property
    def is_supported(self) -> bool:
        """No judge disagrees, and one agrees where there are any; that nothing differs needs no agreement."""
        opinions = {opinion for _, opinion in self.judges.values()}
        return "disagrees" not in opinions and (not opinions or "agrees" in opinions or self.decision == "no difference")


def conclude(summary: dict, arms: dict[str, dict], thresholds: Gates, durations: list[dict]) -> dict:
    """Answer the experiment's question.

    Args:
        summary: what ``evaluation.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them, in the experiment's order.
        thresholds: of the gates.
        durations: what ``evaluation.summary.read_durations`` returned, for what another seed costs.

    Returns:
        ``{"gates", "budgets", "comparisons", "expectations", "verdict"}``, to be put into the summary.
    """
    gates, budgets = check_gates(summary, arms, thresholds), count_budgets(summary, arms)
    comparisons = compare(summary, arms)
    answer, chosen = _answer(comparisons, gates, arms, len(summary["seeds"]))
    seconds = sum(row["wall_seconds"] for row in durations if row["run"]) / len(summary["seeds"])
    verdict = {
        "answer": answer,
        "arm": chosen.arm if answer == "decouple" else None,
        "headline": _headline(answer, chosen, gates, summary, seconds),
        "outcomes": {comparison.arm: comparison.decision for comparison in comparisons},
        "worth": worth(len(summary["seeds"])),
        "next_look": next_look(len(summary["seeds"])),
        "num_more_seeds": chosen.num_more_seeds if chosen else 0,
        "seconds_per_seed": seconds,
        "paragraphs": [_explain(one, summary) for one in comparisons],
        "certainty": f"{_certainty(answer, gates, summary, seconds)} {describe_budgets(budgets)}",
    }
    expectations = [row for comparison in comparisons for row in _expectations(comparison.arm, summary)]
    rows = [_row(one, summary) for one in comparisons]
    return {"gates": gates, "budgets": budgets, "comparisons": rows, "expectations": expectations, "verdict": verdict}


def compare(summary: dict, arms: dict[str, dict]) -> list[Comparison]:
    """Compare every further arm's samples with the baseline's; decided by Holm's procedure over the candidates, the rest one by one."""
    key, others = f"samples.{summary['distance']}", summary["arm_names"][1:]
    paired = {arm: _pair(summary, arm, key) for arm in others}
    candidates = [arm for arm in others if arms[arm]["stage2"]["num_steps"] > 0 and any(departure(arms[arm]))]
    decisions = decide({arm: paired[arm] for arm in candidates})
    for arm in others:
        decisions |= {} if arm in candidates else decide({arm: paired[arm]})
    return [
        Comparison(arm, arm in candidates, paired[arm], decisions[arm], _judge(summary, arm, _side(paired[arm], decisions[arm])))
        for arm in others
    ]


def departure(arm: dict) -> tuple[float, float, float, float]:
    """How far an arm departs from the full, undisturbed decoder: what to order arms by, the weakest departure first.

    Arms are ordered by the width that the auxiliary decoder lacks; among equals by its dropout; then by the strength of noise in stage 1,
    then in stage 2. So any noise departs less than any dropout, and any dropout less than any narrowing. Zero throughout: none.
    """
    stage1, stage2 = arm["stage1"], arm["stage2"]
    strengths = [stage["latent_noise"]["strength"] if stage["latent_noise"] else 0.0 for stage in (stage1, stage2)]
    return 1 - stage1["channels_multiplier"], stage1["dropout"], strengths[0], strengths[1]


def _pair(summary: dict, arm: str, key: str) -> Paired | None:
    values = [[summary["arms"][one]["runs"][str(seed)].get(key) for seed in summary["seeds"]] for one in (arm, summary["baseline"])]
    differences = None if None in values[0] + values[1] else log_ratios(*values)
    return pair(differences) if differences else None


def _side(paired: Paired, decision: str) -> int:
    """What a judge is held against: that the arm is better (-1) or not (1). No difference that matters is a reason not to decouple."""
    return 1 if decision == "no difference" else (paired.mean > 0) - (paired.mean < 0)


def _judge(summary: dict, arm: str, side: int) -> dict[str, tuple[Paired, str]]:
    heard = {}
    for key in JUDGES:
        paired = _pair(summary, arm, key)
        if paired:
            opinion = "disagrees" if paired.excludes_zero == -side != 0 else "agrees" if paired.mean * side > 0 else "no opinion"
            heard[key.partition(".")[2]] = (paired, opinion)
    return heard


def _answer(comparisons: list[Comparison], gates: list[dict], arms: dict, num_seeds: int) -> tuple[str, Comparison | None]:
    """The answer, and the comparison that it is told by: the recommended arm's, or the best candidate's.

    Of the arms that are better, the weakest departure within one standard error of the best is recommended.
    """
    candidates = [comparison for comparison in comparisons if comparison.is_candidate]
    if not candidates:
        return "nothing to decide", None
    best = min(candidates, key=lambda one: one.paired.mean)
    better = [one for one in candidates if one.decision == "better"]
    supported = [one for one in better if one.is_supported]
    if num_seeds < min(LOOKS):
        return "no verdict", best
    if any(gate["state"] == "failed" for gate in gates):
        return "not testable", best
    if supported:
        best = min(supported, key=lambda one: one.paired.mean)
        level = [one for one in supported if one.paired.mean <= best.paired.mean + best.paired.standard_error]
        return "decouple", min(level, key=lambda one: departure(arms[one.arm]))
    if better:
        return "judges disagree", min(better, key=lambda one: one.paired.mean)
    if any(one.decision == "undecided" for one in candidates):
        return "cannot tell yet", min((one for one in candidates if one.decision == "undecided"), key=lambda one: one.paired.mean)
    unsupported = [one for one in candidates if not one.is_supported]
    return ("judges disagree", unsupported[0]) if unsupported else ("do not", best)


def _headline(answer: str, chosen: Comparison | None, gates: list[dict], summary: dict, seconds: float) -> str:
    baseline, num_seeds = summary["baseline"], len(summary["seeds"])
    if chosen is None:
        if len(summary["arm_names"]) == 1:
            return f"Only {baseline} was run: there is nothing to compare it with."
        return f"Nothing to decide: no arm with a weak decoder and a frozen encoder was run beside {baseline}."
    told = f"the {describe(summary['distance']).label} of {chosen.arm}'s samples is {_interval(chosen.paired, baseline)}"
    if answer == "no verdict":
        start = f"No verdict: {'one seed gives' if num_seeds == 1 else f'{num_seeds} seeds give'} none"
        if any(gate["state"] == "failed" for gate in gates):
            return f"{start}, and at this budget more would not either: {_raise_this(gates)}."
        return f"{start}; {_cost(chosen.num_more_seeds, seconds)} to the first look; so far {told}."
    if answer == "judges disagree":
        against = [describe(metric).label for metric, (_, opinion) in chosen.judges.items() if opinion == "disagrees"]
        labels = " and ".join(against or [describe(metric).label for metric in chosen.judges])
        return f"The judges disagree: {told}, but it is {'the other way round' if against else 'not confirmed'} by {labels}."
    return {
        "not testable": f"Not testable at this budget: {_raise_this(gates)}.",
        "decouple": f"Decouple, as weakly as {chosen.arm}: {told}.",
        "do not": f"Do not decouple: {told}{', no difference that matters' if chosen.decision == 'no difference' else ''}.",
        "cannot tell yet": f"Cannot tell yet: it takes about {_cost(chosen.num_more_seeds, seconds)}; so far {told}.",
    }[answer]


def _raise_this(gates: list[dict]) -> str:
    """What to do about the first gate that fails, with its value, and which others fail."""
    failed = [gate for gate in gates if gate["state"] == "failed"]
    if not failed:
        return ""
    also = _names(failed[1:])
    measured = f"{failed[0]['value']:.3g}, {failed[0]['bound']} {failed[0]['threshold']:g} asked"
    return f"{failed[0]['advice']} (“{failed[0]['name']}” fails: {measured}{'; so do: ' if also else ''}{also})"


def _names(gates: list[dict]) -> str:
    return ", ".join(f"“{gate['name']}”" for gate in gates)


def _interval(paired: Paired, baseline: str) -> str:
    """``0.862 times baseline's (95 % interval 0.801 to 0.924, 5 seeds)``; with one or two seeds without what is in brackets."""
    tree = _ratio(paired)
    text = f"{tree['ratio']:.3f} times {baseline}'s"
    if paired.num_seeds < min(LOOKS):
        return text
    return f"{text} (95 % interval {tree['low']:.3f} to {tree['high']:.3f}, {paired.num_seeds} seeds)"


def _cost(num_more: int, seconds: float) -> str:
    return f"{num_more:,} more seed{'s' if num_more > 1 else ''} (about {format_duration(num_more * seconds)} for all arms)"


def _explain(comparison: Comparison, summary: dict) -> str:
    """How far apart the samples of an arm and of the baseline are, against the floor."""
    arm, baseline, metric = comparison.arm, summary["baseline"], summary["distance"]
    mean = {name: summary["arms"][name]["mean"][f"samples.{metric}"] for name in (arm, baseline)}
    places = decimals(mean.values())
    text = f"Samples of {arm} have {describe(metric).full_label} {mean[arm]:.{places}f}, those of {baseline} {mean[baseline]:.{places}f}"
    share = _gap_closed(mean[baseline], mean[arm], summary["floor"].get(metric))
    if share:
        text += f", which {'takes away' if share > 0 else 'adds'} {abs(share):.0%} of {baseline}'s distance above the floor"
    return f"{text} (means; lower is better): {comparison.decision}."


def _certainty(answer: str, gates: list[dict], summary: dict, seconds: float) -> str:
    """What the answer rests on: seeds, the next look, what was not measured, the floor."""
    num_seeds, floor = len(summary["seeds"]), summary["floor"].get(summary["distance"])
    sentences = [f"What {num_seeds} seed{'s are' if num_seeds > 1 else ' is'} good for: {worth(num_seeds)}."]
    look, unmeasured = next_look(num_seeds), _names([gate for gate in gates if gate["state"] == "not measured"])
    if look and answer in ("no verdict", "cannot tell yet"):
        sentences.append(f"The next look is at {look} seeds: {_cost(look - num_seeds, seconds)}.")
    if unmeasured:
        sentences.append(f"Not measured: {unmeasured}.")
    if floor is not None:
        places = decimals(tree["mean"][f"samples.{summary['distance']}"] for tree in summary["arms"].values())
        sentences.append(f"The floor, {floor:.{places}f}, is what real training images score against the same reference.")
    return " ".join(sentences)


def _row(comparison: Comparison, summary: dict) -> dict:
    """A comparison as plain JSON."""
    return {
        "arm": comparison.arm,
        "is_candidate": comparison.is_candidate,
        "metric": f"samples.{summary['distance']}",
        **_ratio(comparison.paired),
        "p": comparison.paired.p,
        "decision": comparison.decision,
        "num_more_seeds": comparison.num_more_seeds,
        "judges": [{"metric": name, **_ratio(paired), "opinion": opinion} for name, (paired, opinion) in comparison.judges.items()],
    }


def _ratio(paired: Paired) -> dict:
    """Geometric mean of the ratios, its 95 % interval, null with one seed, and the number of seeds."""
    low, high = paired.interval or (None, None)
    logs = {"ratio": paired.mean, "low": low, "high": high}
    ratios = {name: None if log is None else math.exp(min(log, MAX_LOG)) for name, log in logs.items()}
    return ratios | {"num_seeds": paired.num_seeds}


def _expectations(arm: str, summary: dict) -> list[dict]:
    """Hold one arm against the baseline, one row per expectation of the paper; told where the paired interval excludes 1."""
    rows = []
    for section, expected in EXPECTATIONS:
        key = f"{section}.{summary['distance']}"
        paired = _pair(summary, arm, key)
        sides = {-1: "better", 0: "equal", 1: "worse"}
        verdict = {expected: "as in the paper", "equal": "cannot be told"}.get(sides[paired.excludes_zero], "not here")
        mean, baseline_mean = (summary["arms"][name]["mean"][key] for name in (arm, summary["baseline"]))
        rows.append(
            {
                "arm": arm,
                "section": section,
                "metric": summary["distance"],
                "expected": expected,
                "measured": sides[(paired.mean > 0) - (paired.mean < 0)],
                "verdict": verdict,
                "baseline_mean": baseline_mean,
                "mean": mean,
                **_ratio(paired),
                "gap_closed": _gap_closed(baseline_mean, mean, summary["floor"].get(summary["distance"])),
            }
        )
    return rows


def _gap_closed(baseline: float, mean: float, floor: float | None) -> float | None:
    """Share of the baseline's distance above the floor that the arm does without; negative when it adds to it."""
    if floor is None or baseline <= floor:
        return None
    return (baseline - mean) / (baseline - floor) + 0.0  # + 0.0: no minus zero
