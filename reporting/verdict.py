"""The answer: decouple (and how weakly), do not, cannot tell yet (how many more seeds), not testable (what to raise or to add), judges
disagree, no verdict (one or two seeds), or nothing to decide.

It rests on the Fréchet distance of samples above the floor, that real training images score, paired by seed and decided at the looks of
reporting/statistics.py; on the best joint training of the experiment, which it is held against (reporting/landmarks.py); on the gates of
reporting/gates.py, each of which has to be passed, as a difference means nothing otherwise; and on further judges, which do without the
distance's network: where there are any, none may disagree, and one has to agree with a difference, each by a 95 % interval of its own.
Values as measured, means and standard deviations over seeds are shown beside it, and decide nothing.
"""

from __future__ import annotations

from reporting.arms import departure, first_steps, is_joint
from reporting.budget import count_budgets, describe_budgets
from reporting.comparison import ArmComparison, compare, comparison_row
from reporting.explanation import attribute, explain_mechanism, gap_closed, hold_against_paper
from reporting.gates import check_gates
from reporting.landmarks import Landmarks, find_landmarks
from reporting.pairing import Pair, as_row
from reporting.statistics import FIRST_LOOK, LAST_LOOK, next_look, worth
from reporting.summary import decimals, format_duration, metric_of
from sections import Gates

FINAL = ("decouple", "do not", "nothing to decide")  # which more seeds would not change
FIRST_FRESH_SEED = 100  # of those that confirm an arm: none that chose it


def conclude(summary: dict, arms: dict[str, dict], thresholds: Gates, durations: list[dict]) -> dict:
    """Answer the experiment's question.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them, in the experiment's order.
        durations: what ``reporting.summary.read_durations`` returned, for what another seed costs.

    Returns:
        ``{"baseline", "gates", "budgets", "comparisons", "attribution", "mechanism", "expectations", "verdict"}``, to be put into the
        summary. ``baseline`` is the best joint training. Every ``num_more_seeds`` is 0 where a gate fails, so that more would not help.
    """
    landmarks = find_landmarks(summary, arms)
    summary = summary | {"baseline": landmarks.baseline}
    comparisons, budgets, num_seeds = compare(summary, arms), count_budgets(summary, arms), len(summary["seeds"])
    answer, chosen = _choose(comparisons, arms, num_seeds)
    gates = check_gates(summary, landmarks, [landmarks.baseline, *([chosen.arm] if chosen else [])], thresholds)
    if answer not in ("nothing to decide", "no verdict") and not _is_testable(gates):
        answer = "not testable"
    more_helps = not _in_state(gates, "failed") and answer != "not testable"
    seconds = sum(row["wall_seconds"] for row in durations if row["run"]) / num_seeds
    certainty = [
        *_certainty(answer, gates, summary, seconds if more_helps else None),
        *_selections(answer, chosen, comparisons, landmarks, summary, arms),
        describe_budgets(budgets, _compared_by_budget(landmarks, arms)),
    ]
    return {
        "baseline": landmarks.baseline,
        "gates": gates,
        "budgets": budgets,
        "comparisons": [comparison_row(one, summary, more_helps) for one in comparisons],
        "attribution": attribute(summary, arms),
        "mechanism": explain_mechanism(summary, arms),
        "expectations": [row for one in comparisons if one.is_candidate for row in hold_against_paper(one.arm, summary)],
        "verdict": {
            "answer": answer,
            "arm": chosen.arm if answer == "decouple" else None,
            "replaces": landmarks.replaces,
            "headline": _headline(answer, chosen, gates, summary, seconds) + _replacement(landmarks),
            "outcomes": {comparison.arm: comparison.decision for comparison in comparisons},
            "worth": worth(num_seeds),
            "next_look": next_look(num_seeds),
            "is_testable": _is_testable(gates),
            "is_final": answer in FINAL or (answer == "judges disagree" and chosen.is_contradicted),
            "num_more_seeds": chosen.num_more_seeds if chosen and more_helps else 0,
            "seconds_per_seed": seconds,
            "paragraphs": [_explain(one, summary) for one in comparisons],
            "certainty": " ".join(certainty),
        },
    }


def _choose(comparisons: list[ArmComparison], arms: dict, num_seeds: int) -> tuple[str, ArmComparison | None]:
    """The answer if every gate is passed, and the comparison that it is told by: the recommended arm's, or the best candidate's.

    Of the better arms that the judges support, the one with the smallest departure within one standard error of the best is recommended.
    """
    candidates = [comparison for comparison in comparisons if comparison.is_candidate]
    if not candidates:
        return "nothing to decide", None
    best = min(candidates, key=lambda one: one.rank)
    better = [one for one in candidates if one.decision == "better"]
    supported = [one for one in better if one.is_supported]
    undecided = [one for one in candidates if one.decision == "undecided"]
    if num_seeds < FIRST_LOOK:
        return "no verdict", best
    if supported:
        best = min(supported, key=lambda one: one.rank)
        level = [one for one in supported if one.rank <= best.rank + best.pair.above.standard_error]
        return "decouple", min(level, key=lambda one: departure(arms[one.arm], first_steps(arms)))
    if better:
        return "judges disagree", min(better, key=lambda one: one.rank)
    if undecided:
        return "cannot tell yet", min(undecided, key=lambda one: one.rank)
    unsupported = [one for one in candidates if not one.is_supported]
    return ("judges disagree", unsupported[0]) if unsupported else ("do not", best)


def _headline(answer: str, chosen: ArmComparison | None, gates: list[dict], summary: dict, seconds: float) -> str:
    baseline, num_seeds = summary["baseline"], len(summary["seeds"])
    if chosen is None:
        if len(summary["arm_names"]) == 1:
            return f"Only {baseline} was run: there is nothing to compare it with."
        return f"Nothing to decide: no arm with a frozen encoder was run beside {baseline}."
    told = f"the {metric_of(summary, summary['distance']).label} of {chosen.arm}'s samples {_interval(chosen.pair, baseline)}"
    if answer == "no verdict":
        start = f"No verdict: {'one seed gives' if num_seeds == 1 else f'{num_seeds} seeds give'} none"
        if _in_state(gates, "failed"):
            return f"{start}, and at this budget more would not either: {_raise_this(gates)}."
        first = "".join(f", and first {gate['advice']}" for gate in _in_state(gates, "not measured")[:1])
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


def _replacement(landmarks: Landmarks) -> str:
    """That another joint training than the first arm is the baseline."""
    if not landmarks.replaces:
        return ""
    return f" The baseline is {landmarks.baseline}, the best joint training: it beats the first arm, {landmarks.replaces}."


def _disagreement(chosen: ArmComparison, summary: dict) -> str:
    against = [metric_of(summary, metric).label for metric, judge in chosen.judges.items() if judge.opinion == "disagrees"]
    labels = " and ".join(against or [metric_of(summary, metric).label for metric in chosen.judges])
    if chosen.decision == "no difference":
        return f"no difference that matters, but {labels} tell{'s' if len(against) == 1 else ''} one"
    return f"but it is {'the other way round' if against else 'not confirmed'} by {labels}"


def _until_told(chosen: ArmComparison, seconds: float) -> str:
    """``yet: it takes about 3 more seeds (about 2 h 00 min for all arms)``, or that no number of seeds will do."""
    if not chosen.num_more_seeds:
        return f"any more: nothing is decided beyond {LAST_LOOK} seeds"
    is_late = chosen.pair.plain.num_seeds + chosen.num_more_seeds > LAST_LOOK
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
        measured = f"{failed[0]['value']:.3g}, {failed[0]['bound']} {failed[0]['threshold']:.3g} asked; {failed[0]['why']}"
        return f"{failed[0]['advice']} (“{failed[0]['name']}” fails: {measured}{'; so do: ' if also else ''}{also})"
    return f"{unmeasured[0]['advice']} (not measured: {_names(unmeasured)})"


def _names(gates: list[dict]) -> str:
    return ", ".join(f"“{gate['name']}”" for gate in gates)


def _interval(pair: Pair, baseline: str) -> str:
    """``is 0.862 times baseline's (95 % interval 0.801 to 0.924, 5 seeds) above the floor, and 0.9 times as measured``.

    With one or two seeds without what is in brackets. Where a value is at or below the floor, only as measured.
    """
    row = as_row(pair)
    raw = "" if row["raw_ratio"] is None else f"{row['raw_ratio']:.3f} times"
    if row["ratio"] is None:
        return f"is {raw} {baseline}'s as measured, and there is no ratio above the floor"
    text = f"is {row['ratio']:.3f} times {baseline}'s"
    if row["low"] is not None:
        text += f" (95 % interval {row['low']:.3f} to {row['high']:.3f}, {row['num_seeds']} seeds)"
    return f"{text} above the floor, {raw} as measured"


def _cost(num_more: int, seconds: float) -> str:
    return f"{num_more:,} more seed{'s' if num_more > 1 else ''} (about {format_duration(num_more * seconds)} for all arms)"


def _explain(comparison: ArmComparison, summary: dict) -> str:
    """How far apart the samples of an arm and of the baseline are, against the floor."""
    arm, baseline, metric = comparison.arm, summary["baseline"], summary["distance"]
    mean = {name: summary["arms"][name]["mean"][f"samples.{metric}"] for name in (arm, baseline)}
    places, label = decimals(mean.values()), metric_of(summary, metric).full_label
    text = f"Samples of {arm} have {label} {mean[arm]:.{places}f}, those of {baseline} {mean[baseline]:.{places}f}"
    share = gap_closed(mean[baseline], mean[arm], summary["floor"].get(metric))
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


def _selections(
    answer: str, chosen: ArmComparison | None, comparisons: list[ArmComparison], landmarks: Landmarks, summary: dict, arms: dict
) -> list[str]:
    """What was chosen on the seeds that compare it, which flatters it: an arm among several, and what would confirm it; the baseline."""
    sentences = []
    num_candidates = sum(one.is_candidate for one in comparisons)
    if answer == "decouple" and num_candidates > 1:
        # with all joint training, as a gate needs it
        names = ", ".join(arm for arm in arms if is_joint(arms[arm]) or arm in (landmarks.first, chosen.arm))
        first = max(FIRST_FRESH_SEED, max(summary["seeds"]) + 1)
        sentences.append(
            f"Of {num_candidates} arms {chosen.arm} was chosen on these very seeds, so its ratio flatters: confirm it with "
            f"experiment.arms [{names}] and experiment.seeds {list(range(first, first + 5))}."
        )
    if landmarks.replaces:
        sentences.append(
            f"{landmarks.baseline} was chosen as the baseline on these very seeds, as it beats {landmarks.replaces}: "
            "that flatters it, and so can only speak against decoupling."
        )
    return sentences


def _compared_by_budget(landmarks: Landmarks, arms: dict) -> list[str]:
    """The arms that should have cost as much: other joint training is a landmark because it did not."""
    return [arm for arm in arms if arm == landmarks.baseline or not is_joint(arms[arm])]
