"""What lies above the floor: it hardly depends on the number of images, and deciding on it makes no false findings."""

import math

import numpy as np
import pytest

from reporting.pairing import as_difference, as_row, floor_of, mean_excess, mean_log_excess, pair_arms
from reporting.statistics import LOOKS, two_sided_p

NUM_FEATURES = 48
SHIFTS = {"arm": 0.30, "control": 0.36}  # of every feature's mean, in deviations
NUM_TRIALS = 100_000


def frechet(features: np.ndarray, reference: np.ndarray) -> float:
    mean, covariance = ((of(features), of(reference)) for of in (lambda x: x.mean(0), lambda x: np.cov(x, rowvar=False)))
    root = np.sqrt(np.maximum(np.linalg.eigvals(covariance[0] @ covariance[1]).real, 0)).sum()
    return float(((mean[0] - mean[1]) ** 2).sum() + np.trace(covariance[0]) + np.trace(covariance[1]) - 2 * root)


def mean_distances(num_images: int, num_draws: int = 12) -> dict[str, float]:
    """Of samples of two arms, and of real images, to as many real images: as means over draws."""
    random = np.random.default_rng(0)
    found = {name: 0.0 for name in (*SHIFTS, "floor")}
    for _ in range(num_draws):
        reference = random.standard_normal((num_images, NUM_FEATURES))
        for name in found:
            features = (1 + SHIFTS.get(name, 0.0) / 3) * random.standard_normal((num_images, NUM_FEATURES)) + SHIFTS.get(name, 0.0)
            found[name] += frechet(features, reference) / num_draws
    return found


def test_ratios_above_the_floor_agree_for_any_number_of_images_and_raw_ones_do_not():
    """The same two arms by few and by many images: as measured their ratio moves by a fifth, above the floor by a few percent."""
    raw, above = [], []
    for num_images in (100, 400, 3000):
        found = mean_distances(num_images)
        raw.append(found["arm"] / found["control"])
        above.append((found["arm"] - found["floor"]) / (found["control"] - found["floor"]))
    assert max(raw) / min(raw) > 1.15
    assert max(above) / min(above) < 1.05


@pytest.mark.parametrize(
    ("floor", "excess", "noise"),
    [(124, 600, 0.03), (293, 830, 0.03), (238, 285, 0.1), (238, 40, 0.15)],  # as measured of faces and CIFAR-10, and nearly as good as real
)
@pytest.mark.parametrize("floor_error", [0.0, 0.03])
def test_the_sequential_rule_finds_a_difference_between_equal_arms_in_5_of_100_studies(floor, excess, noise, floor_error):
    """Distances are the floor's bias and an excess that differs by seed; all of a study subtract the same measured floor."""
    random = np.random.default_rng(1)
    shared = random.normal(0, 2 * noise, (NUM_TRIALS, 8))  # what a seed does to both arms
    arms = [floor + excess * np.exp(shared + random.normal(0, noise, shared.shape)) for _ in range(2)]
    measured = floor * (1 + random.normal(0, floor_error, (NUM_TRIALS, 1)))
    can_be_told = (np.minimum(*arms) >= 1.05 * measured).all(1)  # else a gate says so
    d = np.subtract(*(np.log(np.maximum(distances - measured, 1e-9)) for distances in arms))
    found = np.zeros(NUM_TRIALS, dtype=bool)
    for look, limit in ((look, limit) for look, limit in LOOKS.items() if look <= 8):
        found |= two_sided_p(d[:, :look].mean(1), d[:, :look].std(1, ddof=1), look) < limit
    share = (found & can_be_told).mean()
    assert share < 0.0504 + 4 * math.sqrt(0.05 * 0.95 / NUM_TRIALS)
    assert share > 0.03 * can_be_told.mean()


def summary_of(ours: list, theirs: list, floor: float | None, section: str = "samples") -> dict:
    arms = {"arm": ours, "control": theirs}
    trees = {
        name: {
            "runs": {str(seed): {f"{section}.fid": value} for seed, value in enumerate(values)},
            "mean": {f"{section}.fid": None if None in values else sum(values) / len(values)},
        }
        for name, values in arms.items()
    }
    return {"floor": {} if floor is None else {"fid": floor}, "arms": trees}


def test_above_the_floor_and_as_measured_are_told_side_by_side():
    row = as_row(pair_arms(summary_of([60.0, 100.0, 220.0], [100.0, 180.0, 420.0], 20.0), "arm", "control", "samples.fid"))
    assert row["ratio"] == pytest.approx(0.5) and 0.5 < row["raw_ratio"] < 0.6
    assert list(row) == ["ratio", "low", "high", "p", "num_seeds", "raw_ratio", "raw_low", "raw_high"]


@pytest.mark.parametrize("ours", [20.0, 19.0])
def test_at_or_below_the_floor_there_is_no_ratio_and_differences_remain(ours):
    pair = pair_arms(summary_of([ours, 60.0, 62.0], [100.0, 110.0, 120.0], 20.0), "arm", "control", "samples.fid")
    assert pair.above is None and pair.side == -1 and pair.plain.num_seeds == 3
    assert {as_row(pair)[name] for name in ("ratio", "low", "high", "p")} == {None} and as_row(pair)["raw_ratio"] > 0
    told = as_difference(pair)
    assert told["difference"] == pytest.approx((ours + 122 - 330) / 3)
    assert told["difference_low"] < told["difference"] < told["difference_high"]


def test_reconstructions_of_the_reference_itself_have_no_floor():
    section = "reconstruction_stage2"
    pair = pair_arms(summary_of([5.0], [10.0], 20.0, section), "arm", "control", f"{section}.fid")
    assert pair.above == pair.raw and math.exp(pair.above.mean) == pytest.approx(0.5)
    assert floor_of({"floor": {"fid": 20.0}}, f"{section}.fid") == 0.0
    assert floor_of({"floor": {"fid": 20.0}}, "perfect_prior_stage1.fid") == floor_of({"floor": {"fid": 20.0}}, "samples.fid") == 20.0


def test_what_was_not_measured_is_not_paired():
    assert pair_arms(summary_of([1.0, None], [1.0, 1.0], 0.5), "arm", "control", "samples.fid") is None
    without = summary_of([50.0], [100.0], None)
    pair = pair_arms(without, "arm", "control", "samples.fid")
    assert pair.above is None and math.exp(pair.raw.mean) == pytest.approx(0.5)
    assert mean_excess(without, "arm", "samples.fid") is mean_log_excess(without, "arm", "samples.fid") is None
    assert mean_excess(summary_of([None], [1.0], 2.0), "arm", "samples.fid") is None


def test_means_of_what_lies_above_the_floor():
    summary = summary_of([30.0, 60.0], [20.0, 60.0], 20.0)
    assert mean_excess(summary, "arm", "samples.fid") == 25.0
    assert mean_log_excess(summary, "arm", "samples.fid") == pytest.approx(math.log(20.0))
    assert mean_log_excess(summary, "control", "samples.fid") is None
