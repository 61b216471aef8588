"""One seed of benchmarks/alarms.py: a healthy arm is silent, and each sabotage of it raises its alarm while it trains."""

import pytest

from benchmarks.alarms import SABOTAGES, SMALL, Run, choose
from benchmarks.setting import open_params, write_faces
from training.alarms import IDLE_DISCRIMINATOR

NUMBER = 40005  # tokens, 32 channels, and a rate that is far too high thirty times over


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    params = open_params(dataset={"image_size": SMALL.image_size})
    return write_faces(tmp_path_factory.mktemp("faces") / "shards", params, **SMALL.num_images)


@pytest.fixture(scope="module")
def healthy(shards, tmp_path_factory) -> Run:
    run = Run(choose(SMALL, NUMBER, "refit"), shards, tmp_path_factory.mktemp("healthy"))
    assert run.stage1().alarms == {}
    run.encode()
    return run


def test_a_healthy_arm_raises_nothing(healthy):
    assert healthy.stage2().alarms == {}


def test_a_discriminator_that_learns_nothing_raises_its_alarm(shards, tmp_path):
    params = choose(SMALL, NUMBER, "refit")
    params.reconstruction_loss = params.reconstruction_loss.model_copy(update={"discriminator_learning_rate": 1e-7})
    assert set(Run(params, shards, tmp_path).stage1().alarms) == {IDLE_DISCRIMINATOR}


@pytest.mark.parametrize("sabotage", [name for name in SABOTAGES if name != "shuffled latents"])
def test_a_sabotaged_stage_1_raises_its_alarm(sabotage, shards, tmp_path):
    alarms = Run(choose(SMALL, NUMBER, "refit", sabotage), shards, tmp_path).stage1().alarms
    assert SABOTAGES[sabotage] in alarms


def test_latents_of_other_images_raise_their_alarm(healthy):
    assert SABOTAGES["shuffled latents"] in healthy.stage2(shuffled=True).alarms
