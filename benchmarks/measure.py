"""Timing two ways to the same end against each other, and the verdict on a claim about their ratio."""

import contextlib
import io
import time
from collections.abc import Callable
from statistics import median


def alternate(first: Callable[[], object], second: Callable[[], object], num_repetitions: int) -> list[float]:
    """Run both in turn and return, per repetition, the time of the second divided by the first's.

    Each goes first in every other repetition; one run of each, which fills caches, is not counted.
    """
    ratios = []
    for repetition in range(-1, num_repetitions):
        order = (first, second) if repetition % 2 else (second, first)
        seconds = {function: _seconds(function) for function in order}
        if repetition >= 0:
            ratios.append(seconds[second] / seconds[first])
    return ratios


def check_claim(what: str, ratios: list[float], claim: str, bound: float) -> int:
    """Print the median ratio with its range and whether the claim holds; return the exit status.

    Args:
        what: which ratio it is, and of what.
        claim: ``"at least"``, ``"at most"`` or ``"more than"``, of ``bound``.
    """
    ratio = median(ratios)
    holds = {"at least": ratio >= bound, "at most": ratio <= bound, "more than": ratio > bound}[claim]
    spread = f"median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{what}: {ratio:.3f} ({spread}); claim: {claim} {bound}: {'holds' if holds else 'FAILS'}")
    return 0 if holds else 1


def _seconds(function: Callable[[], object]) -> float:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
