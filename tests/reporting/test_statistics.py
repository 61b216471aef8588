"""The statistics of few seeds: what they promise is simulated, and what they compute held against scipy."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from reporting.statistics import (
    LAST_LOOK,
    LOOKS,
    Paired,
    as_ratio,
    decide,
    log_ratios,
    next_look,
    num_more_seeds,
    pair,
    two_sided_p,
    upper_std,
    worth,
)

NUM_TRIALS = 200_000


@functools.cache
def standard_normal() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((NUM_TRIALS, max(LOOKS)))


def share_stopped(effect: float, last: int = 8) -> float:
    """Share of simulated studies, of an effect in standard deviations of d, that stop with a difference at a look up to the last."""
    d = standard_normal()[:, :last] + effect
    stopped = np.zeros(NUM_TRIALS, dtype=bool)
    for look, limit in LOOKS.items():
        if look <= last:
            stopped |= two_sided_p(d[:, :look].mean(1), d[:, :look].std(1, ddof=1), look) < limit
    return stopped.mean()


@pytest.mark.parametrize(("effect", "share"), [(0.0, 0.0504), (0.5, 0.21), (1.0, 0.64), (1.5, 0.94), (2.0, 0.996)])
def test_false_alarms_and_power_over_all_looks(effect, share):
    rounding = 0.0005 if share in (0.0504, 0.996) else 0.005
    assert share_stopped(effect) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / NUM_TRIALS) + rounding)


def test_who_goes_on_to_the_last_look_has_hardly_more_false_alarms():
    assert share_stopped(0.0, LAST_LOOK) == pytest.approx(0.0539, abs=4 * math.sqrt(0.0539 * 0.9461 / NUM_TRIALS))


def test_false_alarms_over_several_arms():
    """Of three arms that all equal the baseline, hence compared with the very same runs, one is told apart in 5 of 100 studies at most."""
    num_trials = 5_000
    baseline, *arms = np.random.default_rng(3).standard_normal((4, num_trials, LAST_LOOK))
    differences = np.stack([arm - baseline for arm in arms])

    def is_told_apart(trial: int) -> bool:
        d = differences[:, trial]
        at_looks = ({str(arm): Paired(look, d[arm, :look].mean(), d[arm, :look].std(ddof=1)) for arm in range(3)} for look in LOOKS)
        return any(decision in ("better", "worse") for family in at_looks for decision in decide(family).values())

    assert 0.03 < np.mean([is_told_apart(trial) for trial in range(num_trials)]) < 0.0539 + 4 * math.sqrt(0.05 * 0.95 / num_trials)


def test_one_study_is_decided_as_all_of_them_are():
    for d in np.random.default_rng(1).standard_normal((300, 5)) * 3 - 3:
        paired = pair(list(d))
        expected = "undecided" if stats.ttest_1samp(d, 0).pvalue >= LOOKS[5] else "better" if d.mean() < 0 else "worse"
        assert decide({"arm": paired}) == {"arm": expected}


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 8])
def test_the_interval_covers_95_percent(num_seeds):
    trials = [pair(d) for d in np.random.default_rng(num_seeds).standard_normal((5_000, num_seeds)).tolist()]
    covered = np.mean([paired.interval[0] <= 0 <= paired.interval[1] for paired in trials])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(trials)))


@pytest.mark.parametrize(("num_seeds", "half_width"), [(3, 2.48), (5, 1.24), (8, 0.84)])
def test_interval_and_p_are_those_of_students_t(num_seeds, half_width):
    d = np.random.default_rng(2).standard_normal(num_seeds) + 0.4
    paired, reference = pair(list(d)), stats.ttest_1samp(d, 0)
    assert paired.p == pytest.approx(reference.pvalue)
    assert paired.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert (paired.interval[1] - paired.mean) / paired.std == pytest.approx(half_width, abs=0.005)


def test_nothing_is_decided_between_looks_and_beyond_the_last():
    looks = [next_look(number) for number in (1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 32, 40)]
    assert looks == [3, 3, 5, 5, 8, 8, 16, 16, 32, 32, None, None]
    for number in (1, 2, 4, 6, 7, 9, 15, 17, 33, 100):
        assert decide({"arm": Paired(number, -1.0, None if number == 1 else 1e-6)}) == {"arm": "undecided"}
    for number in LOOKS:
        assert decide({"arm": Paired(number, -0.5, 0.001)}) == {"arm": "better"}


def test_a_difference_of_less_than_5_percent_does_not_matter():
    tight = Paired(8, -0.03, 0.005)
    assert tight.p < 0.001 and decide({"arm": tight}) == {"arm": "no difference"}
    assert decide({"arm": Paired(8, 0.0, 0.1)}) == {"arm": "undecided"}


def test_several_arms_are_decided_by_holm():
    def at(p: float) -> Paired:
        """A worse arm at eight seeds with such a p."""
        return Paired(8, 1.0, math.sqrt(8) / float(stats.t.isf(p / 2, 7)))

    assert decide({"a": at(0.03), "b": at(0.03)}) == {"a": "undecided", "b": "undecided"}
    assert decide({"a": at(0.03), "b": at(0.019)}) == {"a": "worse", "b": "worse"}  # .019 < .04/2, then .03 < .04/1
    assert decide({"a": at(0.001), "b": at(0.021), "c": at(0.019)}) == {"a": "worse", "b": "worse", "c": "worse"}
    assert decide({"a": at(0.001), "b": at(0.03), "c": at(0.021)}) == {"a": "worse", "b": "undecided", "c": "undecided"}


@pytest.mark.parametrize(("num_seeds", "factor"), [(3, 2.12), (5, 1.56), (8, 1.35)])
def test_more_seeds_are_planned_with_an_upper_limit_of_the_deviation(num_seeds, factor):
    assert upper_std(Paired(num_seeds, 0.0, 1.0)) == pytest.approx(factor, abs=0.005)


def test_how_many_more_seeds():
    assert num_more_seeds(Paired(1, 0.3, None)) == 2  # to the first look
    assert num_more_seeds(Paired(2, 0.01, 0.3)) == 1  # likewise, since two seeds plan nothing
    assert num_more_seeds(Paired(3, 0.3, 0.01)) == 2  # to the next one, though the interval is narrow already
    assert num_more_seeds(Paired(8, 0.0, 0.0)) == 8 and num_more_seeds(Paired(9, 0.0, 0.0)) == 7
    assert num_more_seeds(Paired(32, 0.1, 0.2)) == num_more_seeds(Paired(40, 0.1, 0.2)) == 0  # none would do
    for paired, expected in (
        (Paired(5, 0.2, 0.12), 8),
        (Paired(8, 0.15, 0.1), 16),
        (Paired(8, 0.1, 0.1), 32),
        (Paired(3, -0.2, 0.3), None),
        (Paired(8, 1.0, 40.0), None),
    ):
        needed = next(n for n in range(33, 20_000) if stats.t.ppf(0.975, n - 1) * upper_std(paired) <= abs(paired.mean) * math.sqrt(n))
        look = paired.num_seeds + num_more_seeds(paired)
        assert look == (expected or needed)
        if expected:  # an effect of the planned size and deviation falls below that look's p, and below none before it
            ps = {n: 2 * stats.t.sf(abs(paired.mean) / upper_std(paired) * math.sqrt(n), n - 1) for n in LOOKS if n > paired.num_seeds}
            assert next(n for n, p in ps.items() if p < LOOKS[n]) == expected
    assert num_more_seeds(Paired(8, 0.01, 0.04)) == 8  # an effect that does not matter: until the interval lies within 5 %


@pytest.mark.parametrize("num_arms", [1, 2, 4])
def test_as_many_seeds_as_are_promised_decide_among_as_many_arms(num_arms):
    """An effect of the planned size and deviation is told apart at the promised look, and not at one before it."""
    for paired in (Paired(3, 0.2, 0.05), Paired(5, 0.2, 0.12), Paired(8, 0.15, 0.1), Paired(8, 0.1, 0.1)):
        promised = paired.num_seeds + num_more_seeds(paired, num_arms)
        for look in (look for look in LOOKS if paired.num_seeds < look <= min(promised, LAST_LOOK)):
            family = {str(arm): Paired(look, paired.mean, upper_std(paired)) for arm in range(num_arms)}
            assert set(decide(family).values()) == {"worse" if look == promised else "undecided"}


def test_what_a_number_of_seeds_is_good_for():
    words = ["no verdict", "no verdict", "the direction, and roughly the size", "the direction, and roughly the size", "large effects"]
    assert [worth(number) for number in (1, 2, 3, 4, 5)] == words
    assert [worth(number) for number in (7, 8, 30)] == ["large effects", "a verdict", "a verdict"]


def test_ratios_are_paired_by_seed_and_need_positive_values():
    paired = pair(log_ratios([50.0, 100.0, 200.0], [100.0, 200.0, 400.0]))
    assert math.exp(paired.mean) == pytest.approx(0.5) and paired.std == pytest.approx(0.0)
    assert log_ratios([1.0, 0.0], [1.0, 1.0]) is None and log_ratios([1.0], [-1.0]) is None


def test_ratios_above_a_floor_need_values_above_it():
    assert log_ratios([3.0], [5.0], floor=1.0) == pytest.approx([math.log(0.5)])
    assert log_ratios([1.0], [5.0], floor=1.0) is None and log_ratios([5.0], [0.5], floor=1.0) is None


def test_differences_have_no_margin():
    tiny = Paired(8, -0.003, 0.0005)
    assert decide({"it": tiny}) == {"it": "no difference"} and decide({"it": tiny}, margin=0.0) == {"it": "better"}
    assert decide({"it": Paired(8, 0.0, 0.0)}, margin=0.0) == {"it": "no difference"}


def test_equal_runs_differ_in_nothing():
    equal = pair([0.0, 0.0, 0.0])
    assert (equal.p, equal.interval, equal.excludes_zero) == (1.0, (0.0, 0.0), 0)
    assert pair([0.1, 0.1, 0.1]).p == 0.0 and pair([-0.1] * 3).excludes_zero == -1
    one = pair([-0.1])
    assert (one.std, one.interval, one.p, one.excludes_zero) == (None, None, None, 0)
    assert pair([-0.1, -0.1]).excludes_zero == 0  # two seeds are no verdict, however alike


def test_a_ratio_is_told_without_interval_and_p_below_the_first_look():
    tree = as_ratio(Paired(2, math.log(0.8), 0.01))
    assert tree == {"ratio": pytest.approx(0.8), "low": None, "high": None, "p": None, "num_seeds": 2}
    assert as_ratio(Paired(3, 0.0, 1000.0))["high"] > 1e300  # any seeds have an interval
    tree = as_ratio(Paired(3, math.log(0.8), 0.01))
    assert tree["low"] < 0.8 < tree["high"] and 0 < tree["p"] < 0.01
