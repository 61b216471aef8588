"""What is shown while training runs: it is there after a kill, of this run alone, and changes no byte of a result."""

import errno
import json
import os
import time

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage.decoders import save_decoder
from storage.frozen import load_encoder
from tests.training.test_loop import Killed, die_at, trainer
from tests.training.tiny import SIZE, tiny_params, write_tiny_latents, write_tiny_shards
from training import pictures
from training.autoencoder import Stage1Objective, Stage2Objective
from training.launch import train
from training.live import LiveView, Stopwatch, tile
from training.prior import PriorObjective

CPU = torch.device("cpu")
FAMILIES = {
    "transformer": ("vq", "transformer", "autoregressive"),
    "maskgit": ("vq", "maskgit", "maskgit"),
    "dit": ("kl", "dit", "heun"),
}


@pytest.fixture
def pages(monkeypatch):
    """Pictures of any objective; gives the list of the steps at which they were drawn."""
    drawn = []

    def draw(objective, modules, sources, max_width):
        drawn.append(sources)
        return "pages", torch.full((2, 3, 3, 8, 8), len(drawn), dtype=torch.uint8)

    monkeypatch.setattr(pictures, "draw", draw)
    return drawn


def watched(folder, view, key="key", **options):
    run = trainer(folder, **options)
    run.view = LiveView(view, key, {})
    return run


def scalars(folder):
    """Tag -> [(step, value)], as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def record(folder):
    return json.loads((folder / "live.json").read_text())


def test_every_row_is_there_with_its_rates(tmp_path):
    run = watched(tmp_path / "run", tmp_path / "view")
    rows = run.run().rows
    shown = scalars(tmp_path / "view")
    assert shown["training/error"] == [(row["step"], pytest.approx(row["error"])) for row in rows]
    assert [step for step, _ in shown["validation/error"]] == [2, 4, 6, 8, 10, 12]
    assert {"updates/learning_rate", "updates/gradient_norm_network", "updates/gradient_norm_network_max"} <= set(shown)
    assert all(value > 0 for _, value in shown["speed/images_per_second"])
    assert all(0 <= value <= 1 for _, value in shown["speed/waiting_for_data"])


def test_after_a_kill_everything_up_to_the_last_row_is_there_and_going_on_shows_no_step_twice(tmp_path, pages):
    whole = trainer(tmp_path / "whole").run()
    view = tmp_path / "view"
    with pytest.raises(Killed):
        killed = watched(tmp_path / "killed", view, on_step=die_at(8))
        killed.view.end = lambda: None  # nobody closes the files of a process that is killed
        killed.run()
    assert [step for step, _ in scalars(view)["training/error"]] == list(range(1, 9))
    assert record(view)["caption"] == "step 2: pages" and Image.open(view / "pictures.png").size == (3 * 64, 2 * 64)
    resumed = watched(tmp_path / "killed", view)
    assert resumed.progress.step == 6
    resumed.run()
    assert scalars(view)["training/error"] == [(row["step"], pytest.approx(row["error"])) for row in whole.rows]
    assert resumed.progress == whole


@pytest.mark.parametrize("left", ["another key", "nothing"])
def test_a_view_shows_one_run_only_and_all_of_it(tmp_path, left):
    view = tmp_path / "view"
    with pytest.raises(Killed):
        watched(tmp_path / "run", view, on_step=die_at(7)).run()
    if left == "another key":
        (view / "live.json").write_text(json.dumps(record(view) | {"key": "other"}))
        (view / "events.out.tfevents.1.other").write_bytes(b"")
    else:
        for path in view.iterdir():
            path.unlink()
    rows = watched(tmp_path / "run", view).run().rows
    assert [step for step, _ in scalars(view)["training/error"]] == [row["step"] for row in rows]
    assert not (view / "events.out.tfevents.1.other").exists()
    assert record(view) | {"key": "key", "num_steps": 12} == record(view)


def test_a_run_that_starts_anew_deletes_what_was_shown_of_it(tmp_path):
    for folder in ("first", "second"):
        watched(tmp_path / folder, tmp_path / "view", num_steps=3 if folder == "second" else 12).run()
    assert [step for step, _ in scalars(tmp_path / "view")["training/error"]] == [1, 2, 3]


def test_pictures_take_a_small_share_of_the_time_only(tmp_path, pages, monkeypatch):
    quick = pictures.draw

    def slow(*arguments):
        time.sleep(0.5)
        return quick(*arguments)

    monkeypatch.setattr(pictures, "draw", slow)
    watched(tmp_path / "run", tmp_path / "view").run()
    assert len(pages) == 2 and record(tmp_path / "view")["caption"] == "step 12: pages"  # of six validations the first and the last


def test_a_full_disk_ends_the_view_and_not_the_training(tmp_path, pages, monkeypatch, capsys):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / name))

    monkeypatch.setattr(LiveView, "_replace", full)
    assert watched(tmp_path / "run", tmp_path / "view").run() == trainer(tmp_path / "other").run()
    said = capsys.readouterr().err
    assert said.count("training goes on, and is no longer shown in") == 1 and "No space left" in said


def test_a_view_that_cannot_be_opened_does_not_keep_training_from_starting(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert watched(tmp_path / "run", tmp_path / "file" / "view").run().step == 12
    assert "training goes on" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"[]", b'{"format": "dae-live-1"', b'{"format": "other", "key": "key"}'])
def test_a_damaged_record_is_that_of_another_run(tmp_path, damaged):
    with pytest.raises(Killed):
        watched(tmp_path / "run", tmp_path / "view", on_step=die_at(7)).run()
    (tmp_path / "view" / "live.json").write_bytes(damaged)
    watched(tmp_path / "run", tmp_path / "view").run()
    assert [step for step, _ in scalars(tmp_path / "view")["training/error"]] == list(range(1, 13))


def inputs_of(tmp_path, params):
    """Latents, and the decoders of both stages, for pictures."""
    inputs = write_tiny_latents(tmp_path, params)
    frozen = load_encoder(inputs.freeze)
    for stage, factor in (("stage1", 1.0), ("stage2", 2.0)):
        objective = Stage1Objective(params, inputs, CPU)
        decoder = objective.modules["autoencoder"]["decoder"]
        decoder.conv_out.weight.data *= factor
        save_decoder(tmp_path / stage, objective.config, decoder, frozen.sha256)
    return inputs, {**vars(inputs), "stage2": tmp_path / "stage2"}


def whole_and_watched(objective, params, inputs, optimization, num_steps, tmp_path, sources):
    """The same training unwatched and watched, after checking that no bit differs; returns what is shown."""
    name = objective.averaged[0]
    results = []
    for folder, view in (("plain", None), ("watched", LiveView(tmp_path / "view", "key", sources))):
        run = train(objective, params, inputs, optimization, num_steps, tmp_path / folder, "test", view)
        results.append((run.progress, run.load_selected(name).state_dict()))
    (progress, state), (other_progress, other_state) = results
    assert progress == other_progress
    assert all(torch.equal(state[key], other_state[key]) for key in state)
    return record(tmp_path / "view")["caption"], Image.open(tmp_path / "view" / "pictures.png").size


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_a_prior_changes_no_bit_and_shows_samples(tmp_path, family):
    params = tiny_params(family=FAMILIES[family], prior__training__validate_every_steps=4, prior__training__batch_size=8)
    inputs, sources = inputs_of(tmp_path, params)
    caption, size = whole_and_watched(PriorObjective, params, inputs, params.prior.training, 10, tmp_path, sources)
    assert caption == "step 10: samples by the decoder of stage2" and size == (8 * 64, 2 * 64)


def test_watching_stage1_changes_no_bit_and_shows_reconstructions(tmp_path):
    params = tiny_params("dae_dropout", stage1__validate_every_steps=4)
    inputs = inputs_of(tmp_path, params)[0]
    caption, size = whole_and_watched(Stage1Objective, params, inputs, params.stage1, 10, tmp_path, {})
    assert caption == "step 10: original, stage 1" and size == (8 * 64, 2 * 64)


def test_watching_stage2_changes_no_bit_and_shows_both_decoders(tmp_path):
    params = tiny_params(family=FAMILIES["dit"], stage2__validate_every_steps=4, arms__dae__stage2__num_adversarial_steps=2)
    inputs, sources = inputs_of(tmp_path, params)
    caption, size = whole_and_watched(Stage2Objective, params, inputs, params.stage2, 10, tmp_path, sources)
    assert caption == "step 10: original, stage 1, stage 2" and size == (8 * 64, 3 * 64)


def test_the_rows_of_a_picture_are_what_they_are_called(tmp_path):
    params = tiny_params()
    inputs, sources = inputs_of(tmp_path, params)
    objective = Stage2Objective(params, inputs, CPU)
    decoder = objective.modules["decoder"].eval()
    with torch.inference_mode():
        rows = pictures.draw(objective, {"decoder": decoder}, sources, 1024)[1]
        same = pictures.draw(objective, {"decoder": decoder}, {"stage1": sources["stage2"]}, 1024)[1]
    originals = objective.validation.shards.images([0, 1, 2, 3, 5, 6, 7, 8])
    assert torch.equal(rows[0], originals) and torch.equal(rows[2], same[2])
    assert not torch.equal(rows[1], same[1]), "the second row is by the decoder of stage 1, whatever that is"


@pytest.mark.parametrize("missing", [True, False])
def test_a_prior_is_shown_by_stage1_until_stage2_is_there_and_by_no_foreign_decoder(tmp_path, missing):
    params = tiny_params(**{"prior__training__validate_every_steps": 2, "prior__training__batch_size": 8})
    inputs, sources = inputs_of(tmp_path, params)
    if missing:
        (sources["stage2"] / "decoder.json").unlink()
    else:
        stage1 = Stage1Objective(params, inputs, CPU)
        save_decoder(sources["stage2"], stage1.config, stage1.modules["autoencoder"]["decoder"], "f" * 64)
    train(PriorObjective, params, inputs, params.prior.training, 2, tmp_path / "run", "test", LiveView(tmp_path / "view", "key", sources))
    if missing:
        assert record(tmp_path / "view")["caption"] == "step 2: samples by the decoder of stage1"
    else:
        assert record(tmp_path / "view")["caption"] is None and not (tmp_path / "view" / "pictures.png").exists()
        events = EventAccumulator(str(tmp_path / "view")).Reload()
        assert events.Tags()["tensors"] == ["pictures/none/text_summary"]


def test_of_two_ray_workers_the_first_shows(tmp_path):
    params = tiny_params(prior__training__num_ray_workers=2, prior__training__batch_size=8)
    inputs, sources = inputs_of(tmp_path, params)
    view = LiveView(tmp_path / "view", "key", sources)
    rows = train(PriorObjective, params, inputs, params.prior.training, 6, tmp_path / "run", "test", view).progress.rows
    assert len(list((tmp_path / "view").glob("events.*"))) == 1
    assert scalars(tmp_path / "view")["training/nll_nats_per_token"] == [(6, pytest.approx(rows[-1]["nll_nats_per_token"]))]
    assert record(tmp_path / "view")["caption"] == "step 6: samples by the decoder of stage2"


def test_images_of_any_size_are_shown_at_a_size_to_be_seen(tmp_path):
    rows = torch.arange(2 * 3 * 3 * 20 * 20).reshape(2, 3, 3, 20, 20).to(torch.uint8)
    canvas = tile(rows)
    assert canvas.shape == (2 * 60, 3 * 60, 3)
    assert torch.equal(canvas[60:120:3, 60:120:3], rows[1, 1].permute(1, 2, 0))
    assert tile(torch.zeros(1, 2, 3, 300, 300)).shape == (300, 600, 3)
    shards = write_tiny_shards(tmp_path / "shards")
    assert shards and len(pictures._chosen(10, 256, 1024)) == 4 and len(pictures._chosen(3, SIZE, 1024)) == 3


def test_waiting_is_told_from_computing(monkeypatch):
    now = iter([0.0, 3.0, 4.0, 4.0, 7.0, 8.0])  # asked, got, stepped, asked, got, stepped
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    for _ in zip(watch.timed(iter([1, 2])), range(2), strict=False):
        watch.stepped()
        if watch.num_steps == 2:
            break
    assert watch.read(10) == {"images_per_second": 2 * 10 / 8, "waiting_for_data": 6 / 8}
    assert watch.read(10) == {}
