"""What stage 2 takes off the distance, and its standard error."""

import pytest
import torch

from evaluation.fidelity import features_to_statistics, frechet_distance
from evaluation.gain import NUM_BLOCKS, _root, _without_each_block, gain_error

WIDTH = 6


def draw(number, seed, scale=1.0, width=WIDTH):
    return scale * torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_reference", [4, 90], ids=["fewer images than features", "more"])
@pytest.mark.parametrize("number", [40, 43])
def test_without_a_block_it_is_the_distance_of_what_is_left(number, num_reference):
    features, reference = draw(number, 0, 1.5) + 0.3, draw(num_reference, 1)
    found = _without_each_block(features.double(), reference.double(), _root(reference.double()))
    statistics = features_to_statistics(reference)
    for block, distance in enumerate(found):
        left = torch.stack([row for index, row in enumerate(features) if index % NUM_BLOCKS != block])
        assert distance == pytest.approx(frechet_distance(features_to_statistics(left), statistics), rel=1e-3, abs=1e-3)


def test_the_error_is_what_fresh_images_deviate_by():
    reference, gains, errors = draw(400, 0), [], []
    for seed in range(60):
        originals, noise = draw(400, 3 * seed + 1), draw(400, 3 * seed + 2)
        first, second = originals + 0.8 * noise, originals + 0.3 * noise
        distances = [frechet_distance(features_to_statistics(one), features_to_statistics(reference)) for one in (first, second)]
        gains.append(distances[0] - distances[1])
        errors.append(gain_error(first, second, reference))
    assert 0.7 < torch.tensor(errors).mean() / torch.tensor(gains).std() < 1.4


def test_what_both_sets_share_is_no_error():
    reference, features = draw(50, 0), draw(40, 1)
    assert gain_error(features, features.clone(), reference) == pytest.approx(0, abs=1e-9)
    assert gain_error(features, features + 1, reference) < gain_error(features, draw(40, 2) + 1, reference)
