"""The role of each arm, known by its settings, as names are the user's: candidate, control of the gates, control of a single cause."""

from __future__ import annotations

UNWEAKENED = {"channels_multiplier": 1, "dropout": 0, "latent_noise": None}  # stage 1's settings that can be a weakness
# Steps of stage 2 that two arms may differ by: they are set so that arms cost as many operations.
STEPS = ("num_steps", "num_adversarial_steps")


def departure(arm: dict) -> tuple[float, float, float, float]:
    """How far an arm departs from the full, undisturbed decoder. Arms are sorted by it, the smallest departure first.

    Arms are ordered by the width that the auxiliary decoder lacks; among equals by its dropout; then by the strength of noise in stage 1,
    then in stage 2. So any noise departs less than any dropout, and any dropout less than any narrowing. All zeros: no departure.
    """
    stage1, stage2 = arm["stage1"], arm["stage2"]
    strengths = [stage["latent_noise"]["strength"] if stage["latent_noise"] else 0.0 for stage in (stage1, stage2)]
    return 1 - stage1["channels_multiplier"], stage1["dropout"], strengths[0], strengths[1]


def is_candidate(arm: dict) -> bool:
    """Whether the answer may name it: its encoder is frozen, and it departs from the full, undisturbed decoder."""
    return not is_joint(arm) and any(departure(arm))


def is_joint(arm: dict) -> bool:
    """Whether nothing is frozen: there is no second stage."""
    return arm["stage2"]["num_steps"] == 0


def find_control(arms: dict[str, dict]) -> str | None:
    """The arm that is decoupled without being weakened; None where there is none.

    Its encoder learns with the full decoder, without dropout or noise, for fewer steps than the first arm's, and is then frozen while
    a decoder learns, again without noise. Of several the first whose decoder starts stage 2 as that of the first candidate does, since
    a fresh one costs more than one that goes on learning; else the first.
    """
    baseline, *others = arms
    starts = [arms[arm]["stage2"]["start"] for arm in others if is_candidate(arms[arm])]
    clean = [
        arm
        for arm in others
        if not is_joint(arms[arm])
        and not any(departure(arms[arm]))
        and not arms[arm]["stage1"]["bottleneck"]
        and arms[arm]["stage1"]["num_steps"] < arms[baseline]["stage1"]["num_steps"]
    ]
    alike = [arm for arm in clean if arms[arm]["stage2"]["start"] in starts[:1]]
    return next(iter(alike + clean), None)


def find_causes(arms: dict[str, dict]) -> list[tuple[str, str, str]]:
    """Pairs of arms that differ in one thing only; the first arm is in none of them.

    Returns:
        arm, its control, and the cause that their difference shows: "the weakness alone" (of stage 1), "the noise alone" (of stage 2),
        "the freezing alone" (joint training with the same noise), "not only compression" (joint training of another bottleneck).
    """
    others = list(arms)[1:]
    return [
        (arm, control, cause)
        for arm in others
        for control in others
        if (cause := _cause(arms[arm], arms[control])) and is_candidate(arms[arm])
    ]


def _cause(arm: dict, control: dict) -> str | None:
    stage1, noise = arm["stage1"], arm["stage2"]["latent_noise"]
    if is_joint(control):
        settings = control["stage1"]
        is_noise_all = _unweakened(stage1) == stage1 and _unweakened(settings) == settings | {"latent_noise": None}
        if noise and is_noise_all and settings["latent_noise"] == noise and settings["bottleneck"] == stage1["bottleneck"]:
            return "the freezing alone"
        is_compressed = settings["bottleneck"] and settings["bottleneck"] != stage1["bottleneck"]
        return "not only compression" if is_compressed and not any(departure(control)) else None
    without_weakness = arm | {"stage1": _unweakened(stage1)}
    without_noise = arm | {"stage2": arm["stage2"] | {"latent_noise": None}}
    if without_weakness != arm and _but_for_steps(without_weakness) == _but_for_steps(control):
        return "the weakness alone"
    if without_noise != arm and _but_for_steps(without_noise) == _but_for_steps(control):
        return "the noise alone"
    return None


def _unweakened(stage1: dict) -> dict:
    return stage1 | UNWEAKENED


def _but_for_steps(arm: dict) -> dict:
    return {"stage1": arm["stage1"], "stage2": {name: value for name, value in arm["stage2"].items() if name not in STEPS}}
