"""What the system refuses to a flow, to ``make serve`` or to a guard is one line, as is a mistake in an argument; no server is started."""

import errno
import importlib
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from flows import reproduce as reproduce_module
from flows import serve
from tests.clone import PROJECT

REFUSAL = PermissionError(errno.EACCES, "Permission denied", "/project/.scratch/flow.lock")
LINE = (
    "/project/.scratch/flow.lock: Permission denied; mend its permissions or attributes, or those of the folder it is in, then run it again"
)


def refuse(*arguments):
    raise REFUSAL


def test_a_flow(monkeypatch):
    monkeypatch.setattr(reproduce_module, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(reproduce_module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(name="quick-fox")))
    monkeypatch.setattr(reproduce_module, "exclusive_lock", refuse)
    state = reproduce_module.reproduce.fn()
    assert state.is_failed() and state.message == LINE


def test_serve(monkeypatch, capsys):
    for variable in ("PREFECT_API_URL", "DAE_ROOT"):
        monkeypatch.setenv(variable, "")  # put back afterwards
    monkeypatch.setattr(serve.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(serve, "_start_server", refuse)
    assert serve.main() == 1
    assert capsys.readouterr().err == f"error: serve: {LINE}\n"


def test_a_guard():
    done = subprocess.run([sys.executable, "-m", "flows.guard", "/no/such/command"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: /no/such/command: No such file or directory; restore it, or find out what deletes it, then run it again\n"


@pytest.mark.parametrize("value", ["[1", "!!bool maybe", "2026-99-99", "0x" + "F" * 5000, "[" * 3000])
def test_a_value_that_is_none(monkeypatch, capsys, value):
    monkeypatch.setattr(sys, "argv", ["flows.reproduce", "--set", f"stage1.learning_rate={value}"])
    with pytest.raises(SystemExit):
        reproduce_module.main()
    assert capsys.readouterr().err.endswith(f"error: argument --set: stage1.learning_rate={value}: {value} is no value of params.yaml\n")


@pytest.mark.parametrize("name", ["reproduce", "study"])
def test_an_argument_that_prefect_refuses(monkeypatch, capsys, name):
    module = importlib.import_module(f"flows.{name}")
    message = (
        "Flow run received invalid parameters:\n - stages.0: String should match pattern\n - slots: Input should be a dictionary"
    )
    state = SimpleNamespace(is_completed=lambda: False, message=message)
    monkeypatch.setattr(module, name, lambda **arguments: state)
    monkeypatch.setattr(sys, "argv", [f"flows.{name}"])
    assert module.main() == 1
    assert capsys.readouterr().err == f"error: {message.replace(chr(10), '')}\n"


@pytest.mark.parametrize("port", ["x", "", "-1", "0", "65536", "9" * 5000, "²"])
def test_a_port_that_is_none(port):
    environment = {**os.environ, "PREFECT_SERVER_API_PORT": port}
    done = subprocess.run([sys.executable, "-m", "flows.guard", "true"], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: PREFECT_SERVER_API_PORT={port!r}: ") and done.stderr.count("\n") == 1
