"""The law of the factors: what it scores by arithmetic, that the network's mistakes cancel, and faces that follow it or do not."""

import json
from itertools import product

import pytest
import torch

from errors import PipelineError
from evaluation import factors
from evaluation.factors import FactorJudge, factor_metrics, load_judge, save_judge, to_side, train_judge, with_factors
from ingest.avatars import FACTORS
from ingest.avatars import factors as factors_of
from tests.evaluation.faces import blurred, faces

NUM_CLASSES = {"a": 4, "b": 2, "c": 3}
LAW = torch.tensor(list(product(range(4), range(2), range(3))))  # every combination once: independent, uniform
CPU = torch.device("cpu")


@pytest.fixture
def judge():
    """One that makes no mistakes."""
    judge = FactorJudge(NUM_CLASSES)
    assert judge.calibrate(LAW, LAW, LAW) == {"a": 1, "b": 1, "c": 1}
    return judge


def test_the_law_itself_scores_nothing(judge):
    assert judge.total_variation(LAW) == pytest.approx(0, abs=1e-12)


def test_a_dropped_class_scores_its_share_in_its_factor_and_in_every_pair_of_it(judge):
    without = LAW[LAW[:, 0] != 0]
    assert judge.total_variation(without) == pytest.approx((1 / 4 + 1 / 4 + 1 / 4 + 0 + 0 + 0) / 6)  # a, ab, ac; b, c, bc


def test_factors_that_hang_together_are_seen_by_their_pair_alone(judge):
    tied = LAW[LAW[:, 1] == LAW[:, 0] % 2]
    assert judge.total_variation(tied) == pytest.approx((1 / 2 + 0 + 0 + 0 + 0 + 0) / 6)  # half the cells of ab are empty


def test_one_image_again_and_again(judge):
    shares = [1 / 4, 1 / 2, 1 / 3, 1 / 8, 1 / 12, 1 / 6]
    assert judge.total_variation(LAW[:1].repeat(50, 1)) == pytest.approx(sum(1 - share for share in shares) / 6)


def test_the_networks_mistakes_cancel_whatever_the_validation_images_shares(judge, monkeypatch):
    monkeypatch.setattr(factors, "MIN_ACCURACY", 0.7)
    true = LAW.repeat(5, 1)
    read = true.clone()
    read[: len(LAW), 0] = 0  # a fifth of the images are read as a = 0
    skewed = (true[:, 1] == 0).nonzero()[:, 0].repeat(3)
    skewed = torch.cat([torch.arange(len(true)), skewed])  # b = 0 has four times the share of b = 1
    accuracy = judge.calibrate(read[skewed], true[skewed], LAW)
    assert accuracy["a"] == pytest.approx(1 - 3 / 4 / 5)
    assert judge.total_variation(read) == pytest.approx(0, abs=1e-12)
    assert judge.total_variation(true) == pytest.approx(3 * (3 / 4 / 5) / 6)  # in a, ab and ac


def test_a_factor_that_is_read_badly_is_not_judged_by(judge):
    read = LAW.clone()
    read[:, 1] = 0  # right in half the images
    assert judge.calibrate(read, LAW, LAW)["b"] == 0.5
    assert judge.kept == ("a", "c")
    assert judge.total_variation(LAW[LAW[:, 1] == 0]) == pytest.approx(0, abs=1e-12)


def test_without_a_factor_to_judge_by_there_is_no_metric(judge):
    judge.calibrate((LAW + 1) % 2, LAW, LAW)
    assert judge.kept == () and factor_metrics(judge, {"factors": LAW}) == {}
    assert factor_metrics(None, {}) == {}


def have(start: int, stop: int) -> torch.Tensor:
    return torch.tensor([list(factors_of(0, index).values()) for index in range(start, stop)])


@pytest.fixture(scope="module")
def taught():
    """A judge of cartoon faces that has seen few, and the factors it can read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "NUM_STEPS", 100)
        patch.setattr(factors, "BATCH_SIZE", 32)
        patch.setattr(factors, "MIN_ACCURACY", 0.75)
        judge = train_judge(faces(0, 400), have(0, 400), {name: len(classes) for name, classes in FACTORS.items()}, CPU)
        judge.calibrate(judge.read(faces(400, 600)), have(400, 600), have(0, 5000))
    return judge


def test_new_faces_score_as_real_ones_and_spoiled_or_missing_ones_do_not(taught):
    assert len(taught.kept) >= 3 and "accessory" in taught.kept
    new = faces(600, 800)
    floor = taught.total_variation(taught.read(faces(0, 200)))
    assert taught.total_variation(taught.read(new)) == pytest.approx(floor, rel=0.4)
    noise = torch.randint(0, 256, new.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert taught.total_variation(taught.read(noise)) > 2.5 * floor
    assert taught.total_variation(taught.read(blurred(new, 8))) > 1.5 * floor
    adorned = new[have(600, 800)[:, list(FACTORS).index("accessory")] != 0]
    assert taught.total_variation(taught.read(adorned)) > 1.2 * taught.total_variation(taught.read(new[: len(adorned)]))


def test_the_same_images_teach_the_same_network(monkeypatch):
    monkeypatch.setattr(factors, "NUM_STEPS", 5)
    states = []
    for _ in range(2):
        torch.rand(1)  # whatever the global generator has given before
        states.append(train_judge(faces(0, 60), have(0, 60), {name: len(classes) for name, classes in FACTORS.items()}, CPU).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_few_images_are_shown_a_bounded_number_of_times(monkeypatch):
    shown = []

    class Counting(FactorJudge):
        def forward(self, images):
            shown.append(len(images))
            return super().forward(images)

    monkeypatch.setattr(factors, "FactorJudge", Counting)
    train_judge(faces(0, 8), have(0, 8), {name: len(classes) for name, classes in FACTORS.items()}, CPU)
    assert 32 * 8 <= sum(shown) < 32 * 8 + 128


@pytest.mark.parametrize("size", [16, 32, 64])
def test_images_of_any_size_are_read_beside_what_an_extractor_gives(taught, size):
    images = torch.nn.functional.interpolate(faces(0, 8).float(), (size, size), mode="area").byte()
    outputs = with_factors(lambda batch: {"features": batch.float().mean((2, 3))}, taught)(images)
    assert to_side(images).shape == (8, 3, 32, 32)
    assert outputs["features"].shape == (8, 3) and outputs["factors"].shape == (8, len(FACTORS))
    if size == 64:
        assert torch.equal(outputs["factors"], taught.read(faces(0, 8)))


def test_what_is_saved_reads_and_scores_the_same(taught, tmp_path):
    save_judge(tmp_path, taught)
    loaded, read = load_judge(tmp_path, CPU), taught.read(faces(0, 20))
    assert torch.equal(loaded.read(faces(0, 20)), read)
    assert loaded.kept == taught.kept and loaded.total_variation(read) == taught.total_variation(read)


def test_what_is_missing_is_no_judge_and_what_is_damaged_is_refused(taught, tmp_path):
    assert load_judge(tmp_path, CPU) is None
    save_judge(tmp_path, taught)
    record, weights = tmp_path / "factors.json", tmp_path / "factors.safetensors"
    whole, tree = weights.read_bytes(), json.loads(record.read_text())
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(tmp_path, "not the weights that were written")
    weights.write_bytes(whole)
    for key, value, message in (
        ("format", "dae-factors-0", "not a factor judge in format dae-factors-1; run dvc repro reference"),
        ("kept", ["nose"], "kept: no factor is called 'nose'"),
        ("num_classes", [2], "describes no network"),
        ("factors", None, "factors: input should be a valid list"),
    ):
        record.write_text(json.dumps(tree | {key: value}))
        refused(tmp_path, message)
    record.unlink()
    refused(tmp_path, "factors.json: no such file")


def refused(folder, message):
    with pytest.raises(PipelineError) as error:
        load_judge(folder, CPU)
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)
