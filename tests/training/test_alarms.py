"""Alarms: each fires on the rows that it is for and at the right step, none on healthy ones, and a run keeps them through a kill."""

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errors import PipelineError
from tests.training.test_loop import Killed, Regression, die_at, trainer
from tests.training.tiny import tiny_params, write_tiny_shards
from training.alarms import (
    JUDGED_FROM_STEP,
    MAX_DISCRIMINATOR_LOSS,
    MAX_GRADIENT_RATIO,
    MAX_LOSS_RATIO,
    MAX_LOSS_TO_LINEAR_DB,
    MIN_GAIN_OVER_LINEAR_DB,
    MIN_GAIN_OVER_MEAN_DB,
    MIN_GAIN_OVER_MEAN_HEARING_NOISE_DB,
    NUM_ROWS_BEFORE_RATIO,
    gain_over_linear_asked,
    idle_discriminator,
    idle_stage2,
    strengthen,
    unstable,
    weak_decoder,
)
from training.autoencoder import Stage1Objective
from training.launch import train
from training.linear_map import LinearMap, MeanImage
from training.live import RECORD, LiveView

weakened = partial(weak_decoder, weakness=strengthen(0.5, 0.0, 0.0, None), is_discrete=True, hears_noise=False)
calm = partial(unstable, loss="pixel", advice="halve stage1.learning_rate")
learns = partial(idle_discriminator, discriminator_start=600)  # of 800 steps, as healthy() has them
DETECTORS = {"weak_decoder": weakened, "idle_stage2": idle_stage2, "unstable": calm, "idle_discriminator": learns}


def healthy(num_rows=32, every=25):
    """As a stage 1 or 2 logs them: a first phase, the discriminator's start, and the adversarial steps, whose losses jump."""
    rows = []
    for number in range(1, num_rows + 1):
        share = number / num_rows
        row = {"step": number * every, "pixel": 0.4 * math.exp(-2 * share) + 0.02 * math.sin(7 * number)}
        row["gradient_norm_autoencoder_max"] = 0.2 + (1.0 if number == 1 else 0.0) + 0.1 * math.sin(5 * number)
        row["gradient_norm_discriminator_max"] = 0.0
        if share > 0.75:
            row |= {"discriminator": 0.8, "gradient_norm_discriminator_max": 3.0}
        if share > 0.8:
            row |= {"adversarial": 0.1, "adaptive_weight": 40.0, "pixel": row["pixel"] * 1.3}
            row["gradient_norm_autoencoder_max"] *= 2.5
        if number % 8 == 0:
            row |= {"validation_psnr_db": 18 + 8 * share, "validation_gain_over_mean_image_db": 1 + 10 * share}
            row |= {"validation_gain_over_linear_db": -1 + 4 * share}
            row |= {"validation_gain_over_stage1_db": -6 + 6.5 * share, "validation_gain_over_stage1_standard_error_db": 0.1}
            if share <= 0.5:
                row["validation_gain_over_stage1_db"] = 0.0
        rows.append(row)
    return rows


def raised(detect, rows, num_steps=800, num_skipped_steps=0):
    """What it finds, looking after each row as training does."""
    found = (detect(rows[:number], num_steps, num_skipped_steps) for number in range(1, len(rows) + 1))
    return next((alarm for alarm in found if alarm), None)


def with_values(rows, start=0, **values):
    """From a step on, these values wherever the column is."""
    return [{**row, **{name: value for name, value in values.items() if name in row and row["step"] >= start}} for row in rows]


@pytest.mark.parametrize("detect", DETECTORS.values(), ids=DETECTORS)
def test_healthy_rows_raise_nothing(detect):
    assert raised(detect, healthy()) is None


@pytest.mark.parametrize("values", [{"validation_gain_over_mean_image_db": 0.1}, {"validation_gain_over_linear_db": -2.5}], ids=str)
def test_a_decoder_no_better_than_none_is_found_at_half_of_the_steps(values):
    alarm = raised(weakened, with_values(healthy(), **values))
    assert (alarm.signature, alarm.step, alarm.is_hopeless) == ("weak_decoder", 400, True)
    assert alarm.advice == "double the arm's stage1.channels_multiplier 0.5; or halve stage1.learning_rate"


def test_of_a_decoder_that_nothing_weakens_the_training_is_to_blame():
    rows = with_values(healthy(), validation_gain_over_mean_image_db=0.1)
    alarm = raised(partial(weakened, weakness=""), rows)
    assert (alarm.signature, alarm.advice) == ("unstable", "halve stage1.learning_rate")


def test_who_learns_on_noise_is_not_held_to_a_linear_map_without():
    rows = with_values(healthy(), validation_gain_over_linear_db=-5.0)
    assert raised(weakened, rows) and raised(partial(weakened, hears_noise=True), rows) is None
    between = (MIN_GAIN_OVER_MEAN_HEARING_NOISE_DB + MIN_GAIN_OVER_MEAN_DB) / 2
    rows = with_values(healthy(), validation_gain_over_mean_image_db=between)
    assert raised(weakened, rows) and raised(partial(weakened, hears_noise=True), rows) is None


@pytest.mark.parametrize("is_discrete", [True, False])
def test_more_is_asked_of_a_decoder_the_longer_it_trains_and_the_nearer_it_is_to_the_end(is_discrete):
    at_end = [gain_over_linear_asked(step, step, is_discrete) for step in (1, 100, 200, 400, 800, 10**6)]
    assert at_end == sorted(at_end) and (at_end[0], at_end[-1]) == (-MAX_LOSS_TO_LINEAR_DB, MIN_GAIN_OVER_LINEAR_DB[is_discrete][1])
    within = [gain_over_linear_asked(step, 10**6, is_discrete) for step in range(500_000, 10**6 + 1, 100_000)]
    assert within == sorted(within) and (within[0], within[-1]) == MIN_GAIN_OVER_LINEAR_DB[is_discrete]
    detect = partial(weakened, is_discrete=is_discrete)
    for step, fires in ((100, False), (1000, True)):  # the same gain, after ten times the steps
        rows = [{"step": step, "validation_gain_over_mean_image_db": 9.0, "validation_gain_over_linear_db": 0.0}]
        assert bool(raised(detect, rows, num_steps=step)) is fires


def test_a_discriminator_that_has_learnt_nothing_is_found_at_the_end():
    rows = with_values(healthy(), discriminator=MAX_DISCRIMINATOR_LOSS + 0.02)
    alarm = raised(learns, rows)
    assert (alarm.signature, alarm.step, alarm.is_hopeless) == ("idle_discriminator", 800, False)
    assert "num_adversarial_steps" in alarm.advice and "discriminator_learning_rate" in alarm.advice
    assert raised(learns, rows[:-1]) is None  # it may still learn
    assert raised(partial(learns, discriminator_start=800 - JUDGED_FROM_STEP + 1), rows) is None  # too few steps to learn in


def test_one_that_learns_late_is_none():
    rows = with_values(healthy(), discriminator=1.0)
    assert raised(learns, [*rows[:-1], rows[-1] | {"discriminator": MAX_DISCRIMINATOR_LOSS - 0.02}]) is None


def test_few_steps_are_not_judged():
    rows = with_values(healthy(every=1), validation_gain_over_mean_image_db=-9.0)
    assert rows[-1]["step"] < JUDGED_FROM_STEP and raised(weakened, rows, num_steps=32) is None


def test_advice_names_each_weakness_of_the_arm():
    advice = strengthen(0.5, 0.25, 0.1, 1.0)
    ways = ("channels_multiplier 0.5", "dropout 0.25", "block_dropout 0.1", "latent_noise.strength 1")
    assert all(f"stage1.{way}" in advice for way in ways)
    assert strengthen(1.0, 0.0, 0.0, None) == ""


@pytest.mark.parametrize(("error", "fires"), [(0.1, True), (0.6, False)])
def test_a_real_decoder_worse_than_stage_1s_by_more_than_chance_is_found(error, fires):
    rows = with_values(healthy(), validation_gain_over_stage1_db=-2.0, validation_gain_over_stage1_standard_error_db=error)
    alarm = raised(idle_stage2, rows)
    assert bool(alarm) is fires
    assert not fires or (alarm.signature, alarm.step, alarm.is_hopeless) == ("idle_stage2", 400, False)


@pytest.mark.parametrize(
    ("psnrs", "losses", "advice"),
    [((20, 22), (0.3, 0.3), "num_steps"), ((22, 21), (0.3, 0.2), "by heart"), ((22, 22), (0.3, 0.3), "weaken the arm's stage1 less")],
)
def test_advice_for_stage_2_depends_on_what_still_falls(psnrs, losses, advice):
    rows = [{"step": 100 * n, "pixel": losses[n > 6]} for n in range(1, 9)]
    rows[3] |= {"validation_psnr_db": psnrs[0]}
    rows[7] |= {"validation_psnr_db": psnrs[1], "validation_gain_over_stage1_db": -3.0}
    assert advice in idle_stage2(rows, 800, 0).advice


def test_a_gradient_far_above_its_median_is_found_in_the_row_that_has_it():
    rows = healthy()
    rows[17]["gradient_norm_autoencoder_max"] = 0.2 * MAX_GRADIENT_RATIO * 2
    alarm = raised(calm, rows)
    assert (alarm.signature, alarm.step, alarm.is_hopeless) == ("unstable", rows[17]["step"], False)
    assert "gradient norm of the autoencoder" in alarm.found


def test_one_in_the_first_rows_is_found_when_there_are_rows_to_compare_it_with():
    rows = healthy()
    rows[0]["gradient_norm_autoencoder_max"] = 500.0
    assert raised(calm, rows).step == rows[NUM_ROWS_BEFORE_RATIO - 1]["step"]


def test_a_loss_above_its_first_is_found_and_hopeless_in_the_second_half():
    for start, hopeless in ((75, False), (500, True)):
        alarm = raised(calm, with_values(healthy(), start, pixel=2 * MAX_LOSS_RATIO * 0.4))
        assert (alarm.step, alarm.is_hopeless) == (start + 25, hopeless)  # one odd batch is none


def test_a_skipped_step_is_found():
    alarm = raised(calm, healthy(), num_skipped_steps=1)
    assert (alarm.signature, alarm.step) == ("unstable", 25) and "1 of 25 steps" in alarm.found


CELLS = st.floats(allow_nan=False, allow_infinity=False, width=64)
COLUMNS = sorted({name for row in healthy() for name in row})


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS), max_size=20),
    num_steps=st.integers(1, 10**6),
    num_skipped_steps=st.integers(0, 9),
    order=st.randoms(),
)
def test_odd_rows_raise_no_exception_and_the_order_of_columns_is_no_matter(rows, num_steps, num_skipped_steps, order):
    shuffled = [dict(order.sample(sorted(row.items()), len(row))) for row in rows]
    for detect in DETECTORS.values():
        assert detect(rows, num_steps, num_skipped_steps) == detect(shuffled, num_steps, num_skipped_steps)


def test_a_linear_map_and_the_mean_image_are_what_least_squares_and_the_mean_are():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 2, 4, 4, generator=generator)
    exact = torch.nn.functional.interpolate(z, scale_factor=2)[:, [0, 1, 1]] * torch.tensor([1.0, -2.0, 0.5])[:, None, None] + 0.1
    noise = 0.1 * torch.randn(exact.shape, generator=generator)
    for images, error in ((exact, 0.0), (exact + noise, 0.01)):
        linear, means = LinearMap(), MeanImage()
        for part in range(0, 40, 8):
            linear.add(z[part : part + 8], images[part : part + 8])
            means.add(images[part : part + 8])
        assert linear.squared_error() == pytest.approx(error, rel=0.15, abs=1e-6)
        expected = (images[1::2] - images[::2].mean(0)).square().mean().item()
        assert means.squared_error() == pytest.approx(expected, rel=1e-5)
    assert LinearMap().squared_error() is None and MeanImage().squared_error() is None


class Sabotaged(Regression):
    """Two steps that are not finite."""

    detectors = (partial(unstable, loss="none", advice="halve the rate"),)

    def __init__(self):
        super().__init__(poison={5, 6})


class Broken(Sabotaged):
    """From step 4 on none is finite."""

    def __init__(self):
        Regression.__init__(self, poison=range(3, 12))


@pytest.mark.parametrize("dies_at", [4, 8, 11])
def test_an_alarm_is_raised_once_and_kept_through_a_kill(tmp_path, capsys, dies_at):
    whole = trainer(tmp_path / "whole", objective=Sabotaged()).run()
    assert capsys.readouterr().err.count("alarm: unstable, step 6: 1 of 6 steps were not finite and skipped; halve the rate") == 1
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", objective=Sabotaged(), on_step=die_at(dies_at)).run()
    resumed = trainer(tmp_path / "killed", objective=Sabotaged()).run()
    assert resumed == whole and list(whole.alarms) == ["unstable"]
    assert capsys.readouterr().err.count("alarm: ") == 1


def test_a_run_that_ends_as_no_step_is_finite_leaves_its_alarm_and_last_row(tmp_path, capsys):
    run = trainer(tmp_path / "state", objective=Broken(), validate_every_steps=100)
    run.runtime = run.runtime.model_copy(update={"log_every_steps": 100})
    run.view = LiveView(tmp_path / "live", "key", {})
    with pytest.raises(PipelineError, match="steps in a row were not finite"):
        run.run()
    found = "5 of 8 steps were not finite and skipped"
    assert f"alarm: unstable, step 8: {found}" in capsys.readouterr().err
    assert json.loads((tmp_path / "live" / RECORD).read_text())["alarms"]["unstable"]["found"] == found
    assert run.progress.rows[-1]["step"] == 8


def test_an_alarm_is_in_the_live_view(tmp_path):
    run = trainer(tmp_path / "state", objective=Sabotaged())
    run.view = LiveView(tmp_path / "live", "key", {})
    progress = run.run()
    assert json.loads((tmp_path / "live" / RECORD).read_text())["alarms"] == progress.alarms


def collapsing(stop, **changes):
    """A rate so high that nothing is learnt."""
    return tiny_params(
        "refit",
        arms__refit__stage1__num_adversarial_steps=0,
        stage1__learning_rate=0.5,
        stage1__warmup_steps=1,
        stage1__validate_every_steps=60,
        stage1__stop_on_alarm=stop,
        stage1__ema_decay=0.9,
        **changes,
    )


def test_a_hopeless_stage_ends_with_one_line_if_asked_to_and_else_goes_on(tmp_path, capsys):
    inputs = SimpleNamespace(shards=write_tiny_shards(tmp_path / "shards"))
    params = collapsing(True)
    with pytest.raises(PipelineError, match=r"^unstable, step \d+: .*; halve stage1\.learning_rate.*; or set stage1\.stop_on_alarm: false"):
        train(Stage1Objective, params, inputs, params.stage1, 120, tmp_path / "state", "test")
    params = collapsing(False)
    progress = train(Stage1Objective, params, inputs, params.stage1, 120, tmp_path / "state", "test").progress
    assert progress.step == 120 and list(progress.alarms) == ["unstable"]
