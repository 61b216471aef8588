"""JSON between stages: what was written comes back, and anything else in its place is one line, without waiting."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from errors import LONGEST, PipelineError, explain_os_error
from storage.files import DEEPEST, is_complete, read_json, sha256_file, write_json
from storage.weights import load_weights

WHOLE = b'{"files": {"a": 1.5, "b": [1, null]}, "run": "dae-0"}\n'
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda trees: st.lists(trees, max_size=4) | st.dictionaries(st.text(max_size=4), trees, max_size=4),
    max_leaves=20,
)


class Record(BaseModel):
    files: dict[str, int]


def refusal(path: Path, read=read_json) -> str:
    with pytest.raises(PipelineError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message and message.isprintable() and "dvc repro" in message and len(message) < 2 * LONGEST
    return message


@given(TREES)
def test_json_comes_back_as_it_was_written(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "whole.json"
    write_json(path, tree)
    assert repr(read_json(path)) == repr(json.loads(path.read_bytes())) and read_json(path) == tree


@given(
    st.sampled_from([WHOLE, b""]),
    st.floats(0, 1),
    st.integers(0, 8),
    st.binary(max_size=8) | st.sampled_from([b"NaN", b"1e400", b"9" * 5000, b"[" * 100_000, b'"a": 2, ', b"\xef\xbb\xbf", b"\\ud800"]),
)
def test_any_bytes_are_json_or_refused(tmp_path_factory, start, place, num_deleted, inserted):
    path = tmp_path_factory.getbasetemp() / "any.json"
    position = int(place * len(start))
    path.write_bytes(start[:position] + inserted + start[position + num_deleted :])
    try:
        tree = read_json(path)
    except PipelineError as error:
        assert str(path) in str(error) and str(error).isprintable()
        return
    assert tree == json.loads(path.read_bytes())
    json.dumps(tree, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"b": [0, NaN]}}', "a.b.1 is nan, not a finite number"),
        ('{"a": -1e400}', "a is -inf, not a finite number"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", f"nested more than {DEEPEST} deep"),
    ],
)
def test_what_no_stage_writes_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    assert said in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"é": 1}'.encode(encoding))
    assert "not valid JSON" in refusal(tmp_path / "a.json")


def test_names_and_values_that_a_file_brings_leave_a_message_on_one_line(tmp_path):
    path = tmp_path / "a.json"
    for name in ("a\nb", "\x1b[2J", "\ud800", "x" * 100_000):
        path.write_text(json.dumps({"files": {name: "text"}}))
        refusal(path, lambda path: read_json(path, Record))
    assert explain_os_error(FileNotFoundError(2, "No such file", "a\nb")).startswith("a\\nb: No such file; ")


@pytest.mark.parametrize("read", [read_json, sha256_file, load_weights, lambda path: load_weights(path, "0" * 64)])
def test_what_is_no_file_is_one_line_and_not_waited_for(tmp_path, read):
    path = tmp_path / "a"
    assert "no such file" in refusal(path, read)
    path.mkdir()
    assert "is not a file" in refusal(path, read)
    path.rmdir()
    path.symlink_to(path)
    assert "is not a file" in refusal(path, read)
    path.unlink()
    os.mkfifo(path)
    assert "is not a file" in refusal(path, read)


@pytest.mark.parametrize("record", ["[]", "null", "{}", '{"sha256": 1}', ""])
def test_a_damaged_record_of_finished_work_is_one_line(tmp_path, record):
    (tmp_path / "a").touch()
    (tmp_path / "a.json").write_text(record)
    refusal(tmp_path / "a.json", lambda path: is_complete(tmp_path / "a", path))
