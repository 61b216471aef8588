"""Alarms that take more than a stage's own rows: what its control has, or what was measured of it afterwards.

They are found for each seed, and stand in the report beside those that stages raise while they train (training/alarms.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from reporting.arms import find_causes

WHERE = ("arm", "seed", "stage", "signature")
NUM_STANDARD_ERRORS = 2.0
MIN_PERPLEXITY_RATIO = 0.25  # to the control's
MAX_NOISE_SHARE = 0.9  # of the variance of a channel
MAX_LOSS_TO_CONTROL_DB = 3.0  # twice the squared error; in the two published studies 1.2 and less
PSNR_AFTER_STAGE1 = "reconstruction_stage1.psnr_db"
WEAKEN_LESS = "weaken the arm's stage1 less"


def find_alarms(summary: dict, arms: dict[str, dict]) -> list[dict]:
    """Alarms as ``summary["alarms"]`` has them; ``step`` is the stage's last.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: name -> the arm's sections ``stage1`` and ``stage2``.
    """
    controls = {arm: control for arm, control, cause in find_causes(arms) if cause == "the weakness alone"}
    raised = {tuple(alarm[name] for name in WHERE) for alarm in summary["alarms"]}
    alarms = []
    for arm, settings in arms.items():
        for seed, run in summary["arms"][arm]["runs"].items():
            control = summary["arms"][controls[arm]]["runs"][seed] if arm in controls else None
            for stage, signature, found, advice in [*_of_stage1(run, control, settings), *_of_stage2(run, settings)]:
                if (where := (arm, int(seed), stage, signature)) not in raised:
                    raised.add(where)
                    what = {"step": settings[stage]["num_steps"], "found": found, "advice": advice}
                    alarms.append(dict(zip(WHERE, where, strict=True)) | what)
    return alarms


def _of_stage1(run: dict, control: dict | None, settings: dict) -> Iterator[tuple[str, str, str, str]]:
    """Latents that say little: little but the encoder's own noise; by the arm whose decoder is full, hardly any codes or half the quality.

    A decoder that learns on noise is not held against one that does not: on clean latents it is worse on purpose.
    """
    noise_share = run.get("latent.noise_share")
    if noise_share is not None and noise_share > MAX_NOISE_SHARE:
        found = f"{noise_share:.0%} of the latents' variance is the encoder's own noise, more than {MAX_NOISE_SHARE:.0%}"
        yield "stage1", "weak_decoder", found, f"{WEAKEN_LESS}, or lower bottleneck.kl_weight"
    perplexity = run.get("latent.codebook_perplexity")
    if perplexity is not None and control is not None and perplexity < MIN_PERPLEXITY_RATIO * control["latent.codebook_perplexity"]:
        full = control["latent.codebook_perplexity"]
        yield "stage1", "weak_decoder", f"codes have a perplexity of {perplexity:.0f}, its control's {full:.0f}", WEAKEN_LESS
    if control is not None and not settings["stage1"]["latent_noise"]:
        loss = control[PSNR_AFTER_STAGE1] - run[PSNR_AFTER_STAGE1]
        if loss > MAX_LOSS_TO_CONTROL_DB:
            found = f"after stage 1 reconstructions are {loss:.1f} dB worse than its control's, more than {MAX_LOSS_TO_CONTROL_DB:g}"
            yield "stage1", "weak_decoder", found, WEAKEN_LESS


def _of_stage2(run: dict, settings: dict) -> Iterator[tuple[str, str, str, str]]:
    """A real decoder whose images are no nearer to the real ones; with noise it learns to be further from them, and nearer with samples."""
    stage2 = settings["stage2"]
    gain, error = run.get("stage2_gain.frechet_gain"), run.get("stage2_gain.frechet_gain_standard_error")
    if gain is None or not stage2["num_steps"] or stage2["latent_noise"] or gain >= NUM_STANDARD_ERRORS * error:
        return
    found = f"reconstructions' distance is {gain:.3g} less than after stage 1, not two standard errors ({error:.2g} each)"
    yield "stage2", "idle_stage2", found, f"raise the arm's stage2.num_steps, or {WEAKEN_LESS}"
