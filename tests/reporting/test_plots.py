"""Curves: drawn as they were measured, and refused where they are damaged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import PipelineError
from reporting import plots


def test_a_validation_curve_joins_the_training_curve_of_its_name(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("step,num_images,loss,validation_loss,validation_only\n1,64,2.0,,\n2,128,1.0,1.5,7\n")
    curve = plots.read_curve(path, arm=0, seed=0)
    assert curve.points["validation_loss"] == [(128.0, 1.5)]
    panels = plots.draw_panels("stage1", [curve])
    assert [(panel["metric"], panel["has_training"], panel["has_validation"]) for panel in panels] == [
        ("loss", True, True),
        ("only", False, True),
    ]
    assert all(panel["svg"].startswith("<svg") and "var(--arm-0)" in panel["svg"] and "http" not in panel["svg"] for panel in panels)


@pytest.mark.parametrize(
    "row",
    [
        *(b"2,128,1.0.0", b"2,128,high", b"2", b"2,128", b"2,128,1.0,1.0", b"2,nan,1.0", b"2,inf,1.0", b"2,1e308,1.0", b"2,128,\0"),
        *(b'2,128,"1', b"2,128," + b"1" * 200_000),
    ],
)
def test_a_damaged_curve_is_named_with_its_line(tmp_path, row):
    path = tmp_path / "curve.csv"
    path.write_bytes(b"step,num_images,loss\n1,64,2.0\n" + row + b"\n")
    with pytest.raises(PipelineError, match=r"curve\.csv: line 3: .*; delete it and run dvc repro$") as error:
        plots.read_curve(path, arm=0, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("step,num_images,loss\n1,64,2.0", "line 2: is cut off"), ("step,num_images,a,a\n1,64,2.0,1.0\n", "a column is there twice")],
)
def test_a_curve_that_is_cut_off_or_has_a_column_twice_is_refused(tmp_path, text, said):
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(PipelineError, match=rf"curve\.csv: .*{said}; delete it and run dvc repro$"):
        plots.read_curve(tmp_path / "curve.csv", arm=0, seed=0)


@pytest.mark.parametrize("value", ["nan", "-inf", "1e308"])
def test_a_validation_that_overflowed_is_left_out(tmp_path, value):
    path = tmp_path / "curve.csv"
    path.write_text(f"step,num_images,validation_loss\n1,64,{value}\n2,128,1.0\n")
    curve = plots.read_curve(path, arm=0, seed=0)
    assert curve.points == {"validation_loss": [(128.0, 1.0)]}
    plots.draw_panels("prior", [curve])


CURVE = b"step,num_images,loss,validation_loss\n1,64,2.0,\n2,128,1.0,1.5\n"


@given(
    st.one_of(st.just(b""), st.just(CURVE)),
    st.floats(0, 1),
    st.one_of(st.binary(max_size=8), st.sampled_from([b"\0", b'"', b"\xff", b"9" * 400])),
)
def test_any_bytes_are_a_curve_or_refused(tmp_path_factory, start, place, inserted):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    position = int(place * len(start))
    path.write_bytes(start[:position] + inserted + start[position:])
    try:
        curve = plots.read_curve(path, arm=0, seed=0)
    except PipelineError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    plots.draw_panels("stage1", [curve])
