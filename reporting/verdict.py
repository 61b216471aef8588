"""The answer: decouple (and how weakly), do not, cannot tell yet (how many more seeds), not testable (what to raise or to add), judges
disagree, no verdict (one or two seeds), or nothing to decide.

It rests on the Fréchet distance of samples, paired by seed and decided at the looks of reporting/statistics.py; on the gates of
reporting/gates.py, each of which has to be passed, as a difference means nothing otherwise; and on further judges, which do without the
distance's network: where there are any, none may disagree, and one has to agree with a difference, each by a 95 % interval of its own.
Means and standard deviations over seeds are shown elsewhere, and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from reporting.arms import departure, find_causes, find_control, is_candidate
from reporting.budget import count_budgets, describe_budgets
from reporting.gates import check_gates
from reporting.statistics import FIRST_LOOK, LAST_LOOK, Paired, as_ratio, decide, next_look, num_more_seeds, pair_runs, worth
from reporting.summary import EXPECTATIONS, decimals, format_duration, metric_of
from sections import Gates

JUDGES = ("samples.swd_laplacian", "samples.factor_tv")  # metrics beside the distance; smaller is better; each counts where it was measured
FINAL = ("decouple", "do not", "nothing to decide")  # which more seeds would not change
FIRST_FRESH_SEED = 100  # of those that confirm an arm: none that chose it


@dataclass(frozen=True)
class ArmComparison:
    """Samples of an arm against those of the baseline.

    Attributes:
        is_candidate: whether the answer may name the arm; see ``reporting.arms.is_candidate``.
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
        """No judge disagrees and, where there are any, one agrees. "No difference" needs no agreement."""
        opinions = {opinion for _, opinion in self.judges.values()}
        return "disagrees" not in opinions and (not opinions or "agrees" in opinions or self.decision == "no difference")

    @property
    def is_contradicted(self) -> bool:
        """A judge disagrees, and its own ratio passes the rule by which the distance is decided at this look."""
        against = {metric: paired for metric, (paired, opinion) in self.judges.items() if opinion == "disagrees"}
        return any(decide({metric: paired})[metric] in ("better", "worse") for metric, paired in against.items())


def conclude(summary: dict, arms: dict[str, dict], thresholds: Gates, durations: list[dict]) -> dict:
    """Answer the experiment's question.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them, in the experiment's order.
        thresholds: of the gates.
        durations: what ``reporting.summary.read_durations`` returned, for what another seed costs.

    Returns:
        ``{"gates", "budgets", "comparisons", "attribution", "expectations", "verdict"}``, to be put into the summary. Every
        ``num_more_seeds`` is 0 where a gate stands in the way, so that more seeds would not help.
    """
    gates, budgets = check_gates(summary, arms, thresholds), count_budgets(summary, arms)
    comparisons = compare(summary, arms)
    answer, chosen = _answer(comparisons, gates, arms, len(summary["seeds"]))
    more_helps = answer != "not testable" and not _in_state(gates, "failed")
    seconds = sum(row["wall_seconds"] for row in durations if row["run"]) / len(summary["seeds"])
    verdict = {
        "answer": answer,
        "arm": chosen.arm if answer == "decouple" else None,
        "headline": _headline(answer, chosen, gates, summary, seconds),
        "outcomes": {comparison.arm: comparison.decision for comparison in comparisons},
        "worth": worth(len(summary["seeds"])),
        "next_look": next_look(len(summary["seeds"])),
        "is_testable": _is_testable(gates),
        "is_final": answer in FINAL or (answer == "judges disagree" and chosen.is_contradicted),
        "num_more_seeds": chosen.num_more_seeds if chosen and more_helps else 0,
        "seconds_per_seed": seconds,
        "paragraphs": [_explain(one, summary) for one in comparisons],
        "certainty": " ".join(
            [
                *_certainty(answer, gates, summary, seconds if more_helps else None),
                *_selection(answer, chosen, comparisons, summary, arms),
                describe_budgets(budgets),
            ]
        ),
    }
    return {
        "gates": gates,
        "budgets": budgets,
        "comparisons": [_row(one, summary, more_helps) for one in comparisons],
        "attribution": _attribution(summary, arms),
        "expectations": [row for one in comparisons if one.is_candidate for row in _expectations(one.arm, summary)],
        "verdict": verdict,
    }


def compare(summary: dict, arms: dict[str, dict]) -> list[ArmComparison]:
    """Compare every further arm's samples with the baseline's; decided by Holm's procedure over the candidates, the rest one by one."""
    key, others = f"samples.{summary['distance']}", summary["arm_names"][1:]
    paired = {arm: _pair(summary, arm, key) for arm in others}
    candidates = [arm for arm in others if is_candidate(arms[arm])]
    decisions = decide({arm: paired[arm] for arm in candidates})
    for arm in others:
        decisions |= {} if arm in candidates else decide({arm: paired[arm]})
    return [
        ArmComparison(arm, arm in candidates, paired[arm], decisions[arm], _judge(summary, arm, _side(paired[arm], decisions[arm])))
        for arm in others
    ]


def _pair(summary: dict, arm: str, key: str, control: str | None = None) -> Paired | None:
    return pair_runs(summary["arms"][arm]["runs"], summary["arms"][control or summary["baseline"]]["runs"], key)


def _side(paired: Paired, decision: str) -> int:
    """The side that a judge agrees with: -1, the arm is better; 1, it is not. "No difference" is 1: it is a reason not to decouple."""
    return 1 if decision == "no difference" else (paired.mean > 0) - (paired.mean < 0)


def _judge(summary: dict, arm: str, side: int) -> dict[str, tuple[Paired, str]]:
    heard = {}
    for key in JUDGES:
        paired = _pair(summary, arm, key)
        if paired:
            opinion = {side: "agrees", -side: "disagrees", 0: "no opinion"}.get(paired.excludes_zero, "no opinion")
            heard[key.partition(".")[2]] = (paired, opinion)
    return heard


def _answer(comparisons: list[ArmComparison], gates: list[dict], arms: dict, num_seeds: int) -> tuple[str, ArmComparison | None]:
    """The answer, and the comparison that it is told by: the recommended arm's, or the best candidate's.

    A gate that was not measured might fail, so it prevents an answer as a failed one does. Of the better arms that the judges support,
    the one with the smallest departure within one standard error of the best is recommended.
    """
    candidates = [comparison for comparison in comparisons if comparison.is_candidate]
    if not candidates:
        return "nothing to decide", None
    best = min(candidates, key=lambda one: one.paired.mean)
    better = [one for one in candidates if one.decision == "better"]
    supported = [one for one in better if one.is_supported]
    if num_seeds < FIRST_LOOK:
        return "no verdict", best
    if not _is_testable(gates):
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


def _headline(answer: str, chosen: ArmComparison | None, gates: list[dict], summary: dict, seconds: float) -> str:
    baseline, num_seeds = summary["baseline"], len(summary["seeds"])
    if chosen is None:
        if len(summary["arm_names"]) == 1:
            return f"Only {baseline} was run: there is nothing to compare it with."
        return f"Nothing to decide: no arm with a weak decoder and a frozen encoder was run beside {baseline}."
    told = f"the {metric_of(summary, summary['distance']).label} of {chosen.arm}'s samples is {_interval(chosen.paired, baseline)}"
    if answer == "no verdict":
        start = f"No verdict: {'one seed gives' if num_seeds == 1 else f'{num_seeds} seeds give'} none"
        if _in_state(gates, "failed"):
            return f"{start}, and at this budget more would not either: {_raise_this(gates)}."
        # what a control may be is told beside the gate
        first = "".join(f", and first {gate['advice'].partition(':')[0]}" for gate in _in_state(gates, "not measured")[:1])
        return f"{start}; {_cost(chosen.num_more_seeds, seconds)} to the first look{first}; so far {told}."
    if answer == "judges disagree":
        return f"The judges disagree: {told}, {_disagreement(chosen, summary)}."
    if answer == "cannot tell yet":
        return f"Cannot tell {_until_told(chosen, seconds)}; so far {told}."
    if answer == "not testable":
        return f"Not testable {'at this budget' if _in_state(gates, 'failed') else 'yet'}: {_raise_this(gates)}."
    if answer == "decouple":
        return f"Decouple, as weakly as {chosen.arm}: {told}."
    return f"Do not decouple: {told}{', no difference that matters' if chosen.decision == 'no difference' else ''}."


def _disagreement(chosen: ArmComparison, summary: dict) -> str:
    against = [metric_of(summary, metric).label for metric, (_, opinion) in chosen.judges.items() if opinion == "disagrees"]
    labels = " and ".join(against or [metric_of(summary, metric).label for metric in chosen.judges])
    if chosen.decision == "no difference":
        return f"no difference that matters, but {labels} tell{'s' if len(against) == 1 else ''} one"
    return f"but it is {'the other way round' if against else 'not confirmed'} by {labels}"


def _until_told(chosen: ArmComparison, seconds: float) -> str:
    """``yet: it takes about 3 more seeds (about 2 h 00 min for all arms)``, or that no number of seeds will do."""
    if not chosen.num_more_seeds:
        return f"any more: nothing is decided beyond {LAST_LOOK} seeds"
    is_late = chosen.paired.num_seeds + chosen.num_more_seeds > LAST_LOOK
    beyond = f", and nothing is decided beyond {LAST_LOOK}" if is_late else ""
    return f"yet: it takes about {_cost(chosen.num_more_seeds, seconds)}{beyond}"


def _in_state(gates: list[dict], state: str) -> list[dict]:
    return [gate for gate in gates if gate["state"] == state]


def _is_testable(gates: list[dict]) -> bool:
    return len(_in_state(gates, "passed")) == len(gates)


def _raise_this(gates: list[dict]) -> str:
    """What to do about the first gate that fails, with its value, or else about the first not measured; and which others are like it."""
    failed, unmeasured = _in_state(gates, "failed"), _in_state(gates, "not measured")
    if failed:
        also = _names(failed[1:])
        measured = f"{failed[0]['value']:.3g}, {failed[0]['bound']} {failed[0]['threshold']:g} asked"
        return f"{failed[0]['advice']} (“{failed[0]['name']}” fails: {measured}{'; so do: ' if also else ''}{also})"
    return f"{unmeasured[0]['advice']} (not measured: {_names(unmeasured)})"


def _names(gates: list[dict]) -> str:
    return ", ".join(f"“{gate['name']}”" for gate in gates)


def _interval(paired: Paired, baseline: str) -> str:
    """``0.862 times baseline's (95 % interval 0.801 to 0.924, 5 seeds)``; with one or two seeds without what is in brackets."""
    tree = as_ratio(paired)
    text = f"{tree['ratio']:.3f} times {baseline}'s"
    if tree["low"] is None:
        return text
    return f"{text} (95 % interval {tree['low']:.3f} to {tree['high']:.3f}, {paired.num_seeds} seeds)"


def _cost(num_more: int, seconds: float) -> str:
    return f"{num_more:,} more seed{'s' if num_more > 1 else ''} (about {format_duration(num_more * seconds)} for all arms)"


def _explain(comparison: ArmComparison, summary: dict) -> str:
    """How far apart the samples of an arm and of the baseline are, against the floor."""
    arm, baseline, metric = comparison.arm, summary["baseline"], summary["distance"]
    mean = {name: summary["arms"][name]["mean"][f"samples.{metric}"] for name in (arm, baseline)}
    places, label = decimals(mean.values()), metric_of(summary, metric).full_label
    text = f"Samples of {arm} have {label} {mean[arm]:.{places}f}, those of {baseline} {mean[baseline]:.{places}f}"
    share = _gap_closed(mean[baseline], mean[arm], summary["floor"].get(metric))
    if share:
        text += f", which {'takes away' if share > 0 else 'adds'} {abs(share):.0%} of {baseline}'s distance above the floor"
    return f"{text} (means; lower is better): {comparison.decision}."


def _certainty(answer: str, gates: list[dict], summary: dict, seconds: float | None) -> list[str]:
    """What the answer rests on: seeds, the next look, what was not measured, the floor. ``seconds`` of a seed; None: no more would help."""
    num_seeds, floor = len(summary["seeds"]), summary["floor"].get(summary["distance"])
    sentences = [f"What {num_seeds} seed{'s are' if num_seeds > 1 else ' is'} good for: {worth(num_seeds)}."]
    look, unmeasured = next_look(num_seeds), _names(_in_state(gates, "not measured"))
    if look and seconds is not None and answer in ("no verdict", "cannot tell yet"):
        sentences.append(f"The next look is at {look} seeds: {_cost(look - num_seeds, seconds)}.")
    if unmeasured:
        sentences.append(f"Not measured: {unmeasured}.")
    if floor is not None:
        places = decimals(tree["mean"][f"samples.{summary['distance']}"] for tree in summary["arms"].values())
        sentences.append(f"The floor, {floor:.{places}f}, is what real training images score against the same reference.")
    return sentences


def _selection(answer: str, chosen: ArmComparison | None, comparisons: list[ArmComparison], summary: dict, arms: dict) -> list[str]:
    """That an arm chosen among several is flattered by the seeds that chose it, and what would confirm it; the gates need their control."""
    num_candidates = sum(one.is_candidate for one in comparisons)
    if answer != "decouple" or num_candidates < 2:
        return []
    names = ", ".join([summary["baseline"], chosen.arm, find_control(arms)])
    first = max(FIRST_FRESH_SEED, max(summary["seeds"]) + 1)
    return [
        f"Of {num_candidates} arms {chosen.arm} was chosen on these very seeds, so its ratio flatters: confirm it with "
        f"experiment.arms [{names}] and experiment.seeds {list(range(first, first + 5))}."
    ]


def _attribution(summary: dict, arms: dict[str, dict]) -> list[dict]:
    """Samples of arms against those of controls that differ by one cause. No decision rests on it."""
    rows = []
    for arm, control, cause in find_causes(arms):
        ratio = as_ratio(_pair(summary, arm, f"samples.{summary['distance']}", control))
        rows.append({"arm": arm, "control": control, "asks": cause, **ratio})
    return rows


def _row(comparison: ArmComparison, summary: dict, more_helps: bool) -> dict:
    """A comparison as plain JSON."""
    return {
        "arm": comparison.arm,
        "is_candidate": comparison.is_candidate,
        "metric": f"samples.{summary['distance']}",
        **as_ratio(comparison.paired),
        "decision": comparison.decision,
        "num_more_seeds": comparison.num_more_seeds if more_helps else 0,
        "judges": [{"metric": name, **as_ratio(paired), "opinion": opinion} for name, (paired, opinion) in comparison.judges.items()],
    }


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
                **as_ratio(paired),
                "gap_closed": _gap_closed(baseline_mean, mean, summary["floor"].get(summary["distance"])),
            }
        )
    return rows


def _gap_closed(baseline: float, mean: float, floor: float | None) -> float | None:
    """Share of the baseline's distance above the floor that the arm does without; negative when it adds to it."""
    if floor is None or baseline <= floor:
        return None
    return (baseline - mean) / (baseline - floor) + 0.0  # + 0.0: no minus zero
