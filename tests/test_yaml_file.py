"""A file that is no YAML, or that two versions of YAML read differently, is one line with its name."""

from itertools import pairwise

import pytest
import yaml

from tests.test_params import FILE, REMOVED, changed, complaint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1:\n  {learning_rate: 0.1", "line 2: not valid YAML"),
        ("stage1:\n\tbatch_size: 3\n", "line 2: not valid YAML"),
        ("", "is empty, and must hold one mapping of sections"),
        ("# nothing\n", "is empty"),
        ("[1, 2]", "must hold one mapping of sections"),
        ("just text", "must hold one mapping of sections"),
        (FILE.read_text() + "\nfreeze: {num_probe_images: 3}\n", "freeze"),  # a second time
        (FILE.read_text() + "\n3: 4\n", "3"),
        ("\ndataset: {image_size: 0x" + "F" * 5000 + "}", f"line 2: not valid YAML: '0x{'F' * 38}...' is no integer up to 92233720"),
        ("\nexperiment: {seeds: [" + "9" * 5000 + "]}", f"line 2: not valid YAML: '{'9' * 40}...' is no integer up to 92233720"),
        ("\nencode: {horizontal_flip: !!bool maybe}", "line 2: not valid YAML: 'maybe' is no bool"),
    ],
)
def test_file_that_holds_something_else(tmp_path, text, expected):
    assert expected in complaint(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "text", "readings"),
    [
        ("prior.training.num_steps", "0144", "100 here, YAML 1.2, and so DVC, 144"),
        ("prior.class_conditional", "yes", "True here, YAML 1.2, and so DVC, 'yes'"),
        ("prior.training.warmup_steps", "1:30", "90 here, YAML 1.2, and so DVC, '1:30'"),
        ("report.title", "1e-4", "'1e-4' here, YAML 1.2, and so DVC, 0.0001"),
    ],
)
def test_what_two_versions_of_yaml_read_differently_is_refused(tmp_path, key, text, readings):
    *_, last = key.split(".")
    whole = yaml.safe_dump(changed({key: "PLACE"})).replace(f"{last}: PLACE", f"{last}: {text}")
    assert f"{key}: YAML 1.1 reads {readings}" in complaint(tmp_path, whole)


def test_a_value_without_end_is_shown_in_part(tmp_path):
    aliases = ", ".join(f"&{name} [{', '.join([f'*{inner}'] * 9)}]" for inner, name in pairwise("abcdefghijkl"))
    for title in (f"[&a [x], {aliases}]", f"[{'x' * 9999}]"):
        message = complaint(tmp_path, yaml.safe_dump(changed({"report": REMOVED})) + f"report: {{title: {title}}}")
        assert message.startswith("report.title: got [") and message.endswith("; input should be a valid string") and len(message) < 500
