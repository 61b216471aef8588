"""docs/reliability.md: every promise names a test, and every test it names is there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROMISES = re.findall(r"^\| (?!promise|-)(.+?) \| (.+?) \|$", (TESTS.parent / "docs/reliability.md").read_text(), re.MULTILINE)


def test_there_are_promises():
    assert len(PROMISES) > 20


@pytest.mark.parametrize(("promise", "cell"), PROMISES, ids=[promise[:60] for promise, _ in PROMISES])
def test_promise_names_tests_that_exist(promise, cell):
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
    assert named and ", ".join(f"`{file}::{test}`" for file, test in named) == cell
    for file, test in named:
        functions = [node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)]
        assert test in functions, f"{promise}: {file} has no {test}"
