"""The prior's objective, its selection, and its labels; the same training on Ray Train workers as in process."""

import time

import pytest
import torch
import torch.distributed as dist

import models.dit
import training.prior
from errors import PipelineError
from models.bottleneck import DiagonalGaussian
from tests.training.tiny import tiny_params, write_tiny_latents
from training.alarms import Alarm
from training.launch import train
from training.prior import PriorObjective

CPU = torch.device("cpu")


def settings(**changes):
    return tiny_params(
        prior__class_conditional=True,
        prior__label_dropout=0.0,
        prior__training__batch_size=8,
        prior__training__validate_every_steps=5,
        runtime__log_every_steps=5,
        **changes,
    )


@pytest.fixture
def inputs(tmp_path):
    return write_tiny_latents(tmp_path, tiny_params())


def test_conditional_priors_know_the_classes_and_others_do_not(inputs):
    assert PriorObjective(settings(), inputs, CPU).config.num_classes == 3
    assert PriorObjective(tiny_params(), inputs, CPU).config.num_classes == 0


def test_validation_is_the_mean_likelihood_of_the_validation_latents(inputs):
    objective = PriorObjective(settings(), inputs, CPU)
    prior = objective.modules["prior"].eval()
    batch = objective.validation.batch(list(range(10)))
    expected = prior.loss({"tokens": batch["tokens"]}, batch["labels"]).mean().item()
    assert objective.validate({"prior": prior})["validation_nll_nats_per_token"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", [("kl", "dit", "heun"), ("vq", "maskgit", "maskgit")])
def test_every_validation_image_has_noise_or_masks_of_its_own_the_same_at_each_validation(tmp_path, monkeypatch, family):
    """All images are made the same, so that equal noise and times, or masks, would give equal inputs to the network."""
    params = settings(family=family)
    objective = PriorObjective(params, write_tiny_latents(tmp_path, params), CPU)
    one, prior, seen = objective.validation.batch([0]), objective.modules["prior"].eval(), []
    objective.validation.batch = lambda indices: {name: values.expand(len(indices), *values.shape[1:]) for name, values in one.items()}
    prior.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for batch_size in (250, 4, 4):
        monkeypatch.setattr(training.prior, "VALIDATION_BATCH_SIZE", batch_size)
        objective.validate({"prior": prior})
    inputs = seen[0].flatten(1)
    assert [len(batch) for batch in seen] == [10, *[4, 4, 2] * 2] and len(inputs.unique(dim=0)) == 10
    assert torch.equal(torch.cat(seen[1:4]).flatten(1), inputs) and torch.equal(torch.cat(seen[4:]).flatten(1), inputs)


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_a_dit_sees_latents_of_unit_deviation_whatever_it_is_trained_on(tmp_path, monkeypatch, latent):
    """Of an encoder whose noise is as large as its signal: by the deviation of samples, means would be too small by a root of two."""
    monkeypatch.setattr(DiagonalGaussian, "encode", with_noise_as_large_as_the_signal(DiagonalGaussian.encode))
    params = settings(family=("kl", "dit", "heun"), prior__latent=latent)
    objective = PriorObjective(params, write_tiny_latents(tmp_path, params), CPU)
    prior, seen = objective.modules["prior"], []
    monkeypatch.setattr(models.dit, "flow_matching_loss", lambda velocity, data, noise, times: seen.append(data) or data.flatten(1).sum(1))
    torch.manual_seed(0)
    for step in range(100):
        objective.loss(objective.examples.batch(list(range(24))), step)
    std, mean = torch.std_mean(torch.cat(seen), (0, 2, 3))
    assert prior.config.latent == latent and torch.allclose(std, torch.ones_like(std), atol=0.02) and mean.abs().max() < 0.05


def with_noise_as_large_as_the_signal(encode):
    def noisy(bottleneck, z):
        mean = encode(bottleneck, z)["mean"]
        return {"mean": mean, "logvar": mean.var((0, 2, 3), keepdim=True).log().expand_as(mean)}

    return noisy


def test_class_conditioning_without_labels_is_one_clear_line(tmp_path):
    inputs = write_tiny_latents(tmp_path, tiny_params())
    objective = PriorObjective(settings(), inputs, CPU)
    objective.examples.latents.labels[3] = -1
    from training.prior import prior_config

    with pytest.raises(PipelineError, match=r"prior.class_conditional: true, but 1 of 24 training images have no label"):
        prior_config(settings().prior, objective.examples.latents)


def test_training_beats_the_uniform_guess(tmp_path, inputs):
    params = settings()
    trainer = train(PriorObjective, params, inputs, params.prior.training, 120, tmp_path / "run", "test")
    assert trainer.progress.best_value < 0.8 * torch.tensor(16.0).log().item()


def alarm_at_last(rows, num_steps, num_skipped_steps):
    return Alarm("unstable", num_steps, "it is sabotaged", "stop that") if rows[-1]["step"] == num_steps else None


class Alarmed(PriorObjective):
    """A prior that raises an alarm in its last step."""

    def __init__(self, *inputs):
        super().__init__(*inputs)
        self.detectors = (alarm_at_last,)


def test_two_ray_workers_learn_what_one_process_learns_and_raise_the_same_alarm_once(tmp_path, inputs, capfd):
    """In as many parts, up to rounding: gradients are averaged, and each part draws its own random numbers, wherever it is computed."""
    results = {}
    for num_workers, num_parts in ((0, 2), (2, 1)):
        division = {"prior__training__num_ray_workers": num_workers, "prior__training__num_microbatches": num_parts}
        params = settings(prior__dropout=0.3, **division)
        results[num_workers] = train(Alarmed, params, inputs, params.prior.training, 10, tmp_path / str(num_workers), "test")
        assert results[num_workers].progress.alarms == {"unstable": {"step": 10, "found": "it is sabotaged", "advice": "stop that"}}
        assert capfd.readouterr().err.count("alarm: unstable, step 10: it is sabotaged; stop that") == 1
    alone, shared = (results[n].load_selected("prior").state_dict() for n in (0, 2))
    assert all(torch.allclose(alone[name], shared[name], atol=2e-4) for name in alone)
    assert results[0].progress.best_value == pytest.approx(results[2].progress.best_value, rel=1e-3)
    assert [results[n].progress.batch_division for n in (0, 2)] == ["1 worker, 2 parts", "2 workers, 1 part each"]


class GivesUp(PriorObjective):
    """A prior of which one worker meets an error that the user must mend, while the other waits for it for ever."""

    def loss(self, batch, step):
        if step == 2:
            if dist.get_rank() == 1:
                raise PipelineError("latents.arrow: a file that is damaged")
            time.sleep(3600)
        return super().loss(batch, step)


@pytest.mark.slow
def test_an_error_of_one_ray_worker_ends_them_all_with_one_line(tmp_path, inputs):
    params = settings(prior__training__num_ray_workers=2)
    with pytest.raises(PipelineError, match=r"^latents\.arrow: a file that is damaged$"):
        train(GivesUp, params, inputs, params.prior.training, 30, tmp_path / "run", "test")
    assert not list((tmp_path / "run").glob("error.json"))


DIT = ("kl", "dit", "heun")
STOPS_AT = 7


def dit_settings(**changes):
    flips = {"encode__horizontal_flip": True, "runtime__checkpoint_every_steps": 4}
    return settings(**flips, **changes, family=DIT)


class Stopped(PriorObjective):
    """A prior whose training is ended in the middle of a step."""

    def loss(self, batch, step):
        if step == STOPS_AT:
            raise KeyboardInterrupt
        return super().loss(batch, step)


def test_a_stopped_dit_resumes_to_the_same_bits(tmp_path):
    params = dit_settings()
    inputs = write_tiny_latents(tmp_path, params)

    def run(objective, folder):
        return train(objective, params, inputs, params.prior.training, 12, tmp_path / folder, "test")

    whole = run(PriorObjective, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Stopped, "stopped")
    resumed = run(PriorObjective, "stopped")
    assert resumed.progress == whole.progress
    states = [trainer.load_selected("prior").state_dict() for trainer in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    mean, std = whole.objective.examples.latents.statistics(whole.objective.config.latent)
    assert torch.equal(states[0]["latent_mean"], mean.float()) and torch.equal(states[0]["latent_std"], std.float())


def test_a_view_is_drawn_for_each_image_at_each_step(tmp_path):
    params = dit_settings()
    objective = PriorObjective(params, write_tiny_latents(tmp_path, params), CPU)
    batch = objective.examples.batch(list(range(24)))
    original, flipped = (objective.examples.latents.batch(range(24), view)["mean"] for view in (0, 1))
    seen = []
    objective.modules["prior"].loss = lambda latents, labels, first: seen.append(latents) or torch.zeros(len(labels))
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        objective.loss(batch, 0)
    from_original, from_flipped = ((seen[0]["mean"] == view).flatten(1).all(1) for view in (original, flipped))
    assert seen[0].keys() == {"mean", "logvar"} and (from_original ^ from_flipped).all() and 4 < from_flipped.sum() < 20
    assert torch.equal(seen[0]["mean"], seen[2]["mean"]) and not torch.equal(seen[0]["mean"], seen[1]["mean"])
    assert objective.validation.batch([0, 1]).keys() == {"mean", "logvar", "labels"}  # of the images as they are
