"""Four signatures of training that fails, found in the rows that it logs. ``python -m benchmarks.alarms`` has the thresholds' calibration.

A run knows itself alone: what it says must be the same after a kill, and whatever other arms have run. What it takes others to see is
found where they are, by the stages evaluate and report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from statistics import median

WEAK_DECODER, IDLE_STAGE2, IDLE_DISCRIMINATOR, UNSTABLE = "weak_decoder", "idle_stage2", "idle_discriminator", "unstable"

# Thresholds, each beside the most extreme value that healthy runs had; docs/alarms.md has how many they were, and what sabotage did.
JUDGED_FROM_SHARE = 0.5  # of the steps: what is slow until then may still come
JUDGED_FROM_STEP = 100  # no network has learnt by then; the installation check ends before
MIN_GAIN_OVER_MEAN_DB = 2.0  # healthy: 2.8 and more
MIN_GAIN_OVER_MEAN_HEARING_NOISE_DB = 1.0  # healthy: 1.5 and more
# Of tokens and of continuous latents, at half of the steps and at the end; healthy in long runs: 2.5 and 3.3, 0.3 and 1.0, and more.
MIN_GAIN_OVER_LINEAR_DB = {True: (0.75, 1.5), False: (0.0, 0.5)}
PASSES_LINEAR_AT_STEP = {True: 300, False: 500}  # in shorter runs healthy decoders may still be below a linear map ...
MAX_LOSS_TO_LINEAR_DB = 1.25  # ... by so much; healthy: 1.0 and less
MIN_GAIN_OVER_STAGE1_DB = -1.0  # healthy: -0.1 and more; shuffled latents: -3 and less
MAX_GRADIENT_RATIO = 50.0  # of the largest gradient norm to the median of the largest of each interval; healthy: 15 and less
MAX_LOSS_RATIO = 1.5  # to the first row's; healthy: 1.2 and less
MAX_DISCRIMINATOR_LOSS = 0.95  # in the last quarter of the steps that it learns in; its hinge loss is 1 where it can tell nothing
NUM_ROWS_BEFORE_RATIO = 8
NUM_ROWS_LOOKED_AT = 200  # the last ones: a row must not cost more the longer the run is
NUM_STANDARD_ERRORS = 2.0

Row = dict[str, float]


@dataclass(frozen=True)
class Alarm:
    """One signature, as it was found.

    Attributes:
        step: the last one when it was found.
        found: what was, in a sentence without its full stop; so is ``advice``, which names the parameter to change.
        is_hopeless: more steps will not mend it.
    """

    signature: str
    step: int
    found: str
    advice: str
    is_hopeless: bool = False

    def record(self) -> dict:
        """As metrics and live.json have it, under its signature."""
        return {"step": self.step, "found": self.found, "advice": self.advice}


def describe(signature: str, record: dict) -> str:
    """One line."""
    return f"{signature}, step {record['step']}: {record['found']}; {record['advice']}"


Detector = Callable[[Sequence[Row], int, int], Alarm | None]  # of all rows so far, the number of steps, and of those skipped so far


def weak_decoder(
    rows: Sequence[Row], num_steps: int, num_skipped_steps: int, weakness: str, is_discrete: bool, hears_noise: bool
) -> Alarm | None:
    """The auxiliary decoder adds nothing to the latents, so that they learn nothing from it.

    Args:
        weakness: what would weaken it less, from ``strengthen``; empty for the full decoder, which is rather not able to learn at all.
        is_discrete: whether the latents are tokens.
        hears_noise: it is trained on latents with noise, and so is worse on those without, which it is measured on.
    """
    row = _last_judged(rows, num_steps, "validation_gain_over_mean_image_db")
    if row is None:
        return None
    over_mean, over_linear = row["validation_gain_over_mean_image_db"], row.get("validation_gain_over_linear_db")
    least_over_mean = MIN_GAIN_OVER_MEAN_HEARING_NOISE_DB if hears_noise else MIN_GAIN_OVER_MEAN_DB
    least_over_linear = gain_over_linear_asked(row["step"], num_steps, is_discrete)
    if over_mean < least_over_mean:
        found = f"over the mean image the decoder gains {over_mean:.2f} dB, less than {least_over_mean:g}"
    elif over_linear is not None and over_linear < least_over_linear and not hears_noise:
        found = f"over a linear map of the latents the decoder gains {over_linear:.2f} dB, less than {least_over_linear:.2f}"
    else:
        return None
    if not weakness:
        return Alarm(UNSTABLE, int(row["step"]), f"{found}, though nothing weakens it", "halve stage1.learning_rate", is_hopeless=True)
    return Alarm(WEAK_DECODER, int(row["step"]), found, f"{weakness}; or halve stage1.learning_rate", is_hopeless=True)


def gain_over_linear_asked(step: float, num_steps: int, is_discrete: bool) -> float:
    """In dB: a network needs steps to come to what least squares find at once, and is to be better by the end."""
    at_half, at_end = MIN_GAIN_OVER_LINEAR_DB[is_discrete]
    asked_of_share = at_half + (at_end - at_half) * max(0.0, 2 * step / num_steps - 1)
    asked_of_step = max(-MAX_LOSS_TO_LINEAR_DB, log2(max(step, 1) / PASSES_LINEAR_AT_STEP[is_discrete]))
    return min(asked_of_share, asked_of_step)


def strengthen(channels_multiplier: float, dropout: float, block_dropout: float, latent_noise: float | None) -> str:
    """Advice that names what an arm weakens its auxiliary decoder by; empty where it does not."""
    ways = [f"double the arm's stage1.channels_multiplier {channels_multiplier:g}"] if channels_multiplier < 1 else []
    ways += [f"halve its stage1.dropout {dropout:g}"] if dropout else []
    ways += [f"halve its stage1.block_dropout {block_dropout:g}"] if block_dropout else []
    ways += [f"halve its stage1.latent_noise.strength {latent_noise:g}"] if latent_noise else []
    return ", ".join(ways)


def idle_stage2(rows: Sequence[Row], num_steps: int, num_skipped_steps: int) -> Alarm | None:
    """The real decoder is worse on clean latents than the auxiliary one that it replaces."""
    row = _last_judged(rows, num_steps, "validation_gain_over_stage1_db")
    if row is None:
        return None
    gain, error = row["validation_gain_over_stage1_db"], row.get("validation_gain_over_stage1_standard_error_db", 0.0)
    if gain + NUM_STANDARD_ERRORS * error >= MIN_GAIN_OVER_STAGE1_DB:
        return None
    found = f"reconstructions are {-gain:.2f} dB worse than stage 1's decoder's ({error:.2f} dB standard error)"
    return Alarm(IDLE_STAGE2, int(row["step"]), found, _advice_for_stage2(rows))


def unstable(rows: Sequence[Row], num_steps: int, num_skipped_steps: int, loss: str, advice: str) -> Alarm | None:
    """Steps that are not finite, gradients far above their usual size, or a loss above what training began with.

    Args:
        loss: the column to look at.
    """
    if not rows:
        return None
    step = int(rows[-1].get("step", 0))
    loss_ratio, (gradient_ratio, module) = loss_over_first(rows, loss), gradient_over_median(rows)
    if loss_ratio > MAX_LOSS_RATIO:
        found = f"{loss} is {loss_ratio:.1f} times what it was at first, in two rows more than {MAX_LOSS_RATIO:g}"
        return Alarm(UNSTABLE, step, found, advice, is_hopeless=step >= JUDGED_FROM_SHARE * num_steps)
    if num_skipped_steps:
        return Alarm(UNSTABLE, step, f"{num_skipped_steps} of {step} steps were not finite and skipped", advice)
    if gradient_ratio > MAX_GRADIENT_RATIO:
        found = f"the gradient norm of the {module} went up to {gradient_ratio:.0f} times its median, more than {MAX_GRADIENT_RATIO:g}"
        return Alarm(UNSTABLE, step, found, advice)
    return None


def idle_discriminator(rows: Sequence[Row], num_steps: int, num_skipped_steps: int, discriminator_start: int) -> Alarm | None:
    """A discriminator that has learnt nothing by the end: its gradient is noise, which the adaptive weight makes as large as any.

    Args:
        discriminator_start: the first step at which it learns.
    """
    if not rows or rows[-1].get("step", 0) < num_steps or num_steps - discriminator_start < JUDGED_FROM_STEP:
        return None
    last_quarter = num_steps - (num_steps - discriminator_start) / 4
    losses = [row["discriminator"] for row in rows[-NUM_ROWS_LOOKED_AT:] if "discriminator" in row and row.get("step", 0) > last_quarter]
    if not losses or min(losses) <= MAX_DISCRIMINATOR_LOSS:
        return None
    found = f"the discriminator's loss stays above {MAX_DISCRIMINATOR_LOSS:g} in the last quarter of its steps; 1 is chance"
    advice = "set the arms' num_adversarial_steps to 0, or raise them or reconstruction_loss.discriminator_learning_rate"
    return Alarm(IDLE_DISCRIMINATOR, int(rows[-1]["step"]), found, advice)


def loss_over_first(rows: Sequence[Row], loss: str) -> float:
    """The lower one of a loss's last two values over its first, as a single batch may be odd; 0 where there are not three."""
    known = [row[loss] for row in (rows[0], *rows[-2:]) if loss in row]
    return min(known[1:]) / known[0] if len(rows) > 2 and len(known) == 3 and known[0] > 0 else 0.0


def gradient_over_median(rows: Sequence[Row]) -> tuple[float, str]:
    """The largest gradient norm of a module over the median of its intervals' largest ones, and the module's name."""
    found = (0.0, "")
    lately = rows[-NUM_ROWS_LOOKED_AT:]
    columns = sorted({name for row in lately for name in row if name.startswith("gradient_norm_") and name.endswith("_max")})
    for column in columns:
        norms = [row[column] for row in lately if row.get(column, 0.0) > 0]  # a discriminator has none before it learns
        if len(norms) >= NUM_ROWS_BEFORE_RATIO:
            found = max(found, (max(norms) / median(norms), column.removeprefix("gradient_norm_").removesuffix("_max")))
    return found


def _last_judged(rows: Sequence[Row], num_steps: int, column: str) -> Row | None:
    """The last row, if it was validated late enough to be judged by."""
    if not rows or column not in rows[-1] or "step" not in rows[-1]:
        return None
    return rows[-1] if rows[-1]["step"] >= max(JUDGED_FROM_STEP, JUDGED_FROM_SHARE * num_steps) else None


def _advice_for_stage2(rows: Sequence[Row]) -> str:
    """By the last two validations: it still learns, it has learnt the training images by heart, or the latents lack what it needs."""
    validated = [row["validation_psnr_db"] for row in rows if "validation_psnr_db" in row]
    losses = [row["pixel"] for row in rows if "pixel" in row]
    quarter = max(1, len(losses) // 4)
    falls = len(losses) >= 8 and median(losses[-quarter:]) < 0.98 * median(losses[-2 * quarter : -quarter])
    if len(validated) > 1 and validated[-1] > validated[-2] + 0.1:
        return "it still learns: raise the arm's stage2.num_steps"
    if falls:
        return "it learns the training images by heart: lower the arm's stage2.num_steps, or use more images"
    return "the latents lack what it needs: weaken the arm's stage1 less"
