"""What the system refuses to a flow or to ``make serve`` is one line; no server is started."""

import errno
import logging
from types import SimpleNamespace

from flows import reproduce as reproduce_module
from flows import serve

REFUSAL = PermissionError(errno.EACCES, "Permission denied", "/project/.scratch/flow.lock")
LINE = (
    "/project/.scratch/flow.lock: Permission denied; mend its permissions or attributes, or those of the folder it is in, then run it again"
)


def refuse(*arguments):
    raise REFUSAL


def test_a_flow(monkeypatch):
    monkeypatch.setattr(reproduce_module, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(reproduce_module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(name="quick-fox")))
    monkeypatch.setattr(reproduce_module, "_only_run", refuse)
    state = reproduce_module.reproduce.fn()
    assert state.is_failed() and state.message == LINE


def test_serve(monkeypatch, capsys):
    for variable in ("PREFECT_API_URL", "DAE_ROOT"):
        monkeypatch.setenv(variable, "")  # put back afterwards
    monkeypatch.setattr(serve.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(serve, "_start_server", refuse)
    assert serve.main() == 1
    assert capsys.readouterr().err == f"error: serve: {LINE}\n"
