"""Legends: what is said of a number survives the disk, and anything else is refused."""

import json

import pytest

from errors import PipelineError
from models.metric import PSNR, Metric
from storage.legends import describe, legend_of, read_legend, write_legend

DISTANCE = Metric("fd_eyes", "FD", -1, features="Eyes", note="Smaller is better.")


def test_a_legend_comes_back_and_describes_trained_and_validated_values_alike(tmp_path):
    write_legend(tmp_path, [PSNR, DISTANCE])
    legend = read_legend(tmp_path)
    assert describe(legend, "psnr_db") == describe(legend, "validation_psnr_db") == PSNR
    assert describe(legend, "fd_eyes") == DISTANCE and DISTANCE.full_label == "FD (Eyes)"
    assert describe(legend, "learning_rate") == Metric("learning_rate", "Learning rate")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "dae-legend-0"}, "not a legend in format dae-legend-1; run dvc repro"),
        ({"metrics": {"psnr_db": {"label": "PSNR"}}}, "metrics.psnr_db.direction"),
        ({"metrics": []}, "metrics"),
        ({"metrics": {"psnr_db": legend_of([PSNR])["psnr_db"] | {"direction": 5}}}, "metrics.psnr_db.direction"),
        ({"metrics": {"psnr_db": legend_of([PSNR])["psnr_db"] | {"more": 5}}}, "metrics.psnr_db.more"),
    ],
)
def test_another_format_and_a_damaged_file_are_refused_in_one_line(tmp_path, change, named):
    write_legend(tmp_path, [PSNR])
    path = tmp_path / "legend.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PipelineError, match=named) as error:
        read_legend(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
