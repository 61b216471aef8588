"""Parameters that nobody thought of: load_params gives valid ones or one line, and never another exception."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from errors import PipelineError
from params import Params, load_params
from tests.clone import PROJECT

TEXT = (PROJECT / "params.yaml").read_text()
TREE = yaml.safe_load(TEXT)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**18),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "~", "yes", "1e-4", "nan", "../..", "a" * 300, "é", "\u0000", "null"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.integers(), max_size=2),
)


def paths(node, here=()) -> list[tuple]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [here] * bool(here) + [path for key, value in children for path in paths(value, (*here, key))]


PATHS = paths(TREE)


def load_or_complain(folder, content: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(load_params(path), Params)
    except PipelineError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) > len(str(path)) + 10


@given(place=st.sampled_from(PATHS), value=ODD, what=st.sampled_from(["replace", "delete", "rename"]))
def test_one_odd_place(tmp_path, place, value, what):
    tree = copy.deepcopy(TREE)
    node = tree
    for part in place[:-1]:
        node = node[part]
    if what == "replace":
        node[place[-1]] = value
    elif isinstance(node, dict) and what == "rename":
        node[str(value)] = node.pop(place[-1])
    else:
        del node[place[-1]]
    load_or_complain(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode())


@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.one_of(st.binary(max_size=8), st.text(max_size=8).map(str.encode)))
def test_text_with_something_cut_out_and_something_put_in(tmp_path, start, length, inserted):
    text = TEXT.encode()
    load_or_complain(tmp_path, text[:start] + inserted + text[start + length :])


@given(content=st.binary(max_size=60))
def test_any_bytes(tmp_path, content):
    load_or_complain(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"a: " + b"[" * 3000,
        b"a: &a [*a]",
        b"&a {a: *a}",
        b"? [1, 2]\n: 3",
        b"a: 2026-99-99",
        b"a: !!python/object/apply:os.system [ls]",
        b"a: !!int x",
        b"a: !!int ''",
        b"a: !!bool x",
        b"a: !!timestamp x",
        b"a: !!set [x]",
        b"<<: 3",
        b"a: 1\n--- \nb: 2",
        b"dataset: " + b"9" * 5000,
        b"a: 190:20:30.15\n" * 1,
        b"dataset: {image_size: 0x" + b"F" * 5000 + b"}",
        b"a: 1" + b":59" * 3000,
        b"a: 1" + b":59" * 300 + b".5",
        b"a: !!bool maybe",
        b"a: !!timestamp soon",
        b'a: !!int ""',
        b'a: !!float ""',
        b'a: "\\UFFFFFFFF"',
        b"%YAML 1." + b"9" * 5000 + b"\n--- 3",
        b"bottleneck: {kind: [vq]}",
        b"bottleneck: {kind: vq}\nprior: {kind: {transformer: 1}}",
        b"sample: {sampler: [heun]}",
        b"arms: {a: {stage1: {latent_noise: {kind: [added]}}}}",
    ],
)
def test_traps_of_yaml(tmp_path, content):
    with pytest.raises(PipelineError):
        load_params_of(tmp_path, content)


def load_params_of(folder, content: bytes) -> Params:
    path = folder / "params.yaml"
    path.write_bytes(content)
    return load_params(path)
