"""Dies of SIGKILL at a counted file operation. With this folder on PYTHONPATH every Python process started by a test has it.

Operations are seen by an audit hook, so that the code under test runs unchanged, and with it the key of its scratch folder. A kill
comes before the operation; that after the last one is the same as before the next. A file that is opened to be written anew is left
empty by every second of such kills.

Environment, all or none of it:
    KILL_AT: the number of the operation. Every process counts its own.
    KILL_BELOW: the folder whose operations count.
    KILL_SPARED: names of processes that do not count, separated by spaces: ``dvc``, ``report``, ``stage1@dae-0``.
    KILL_LOG: a file that gets one line of JSON when a process dies, and all of its session with it.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

AT, BELOW, SPARED, LOG, PROCESS = "KILL_AT", "KILL_BELOW", "KILL_SPARED", "KILL_LOG", "KILL_PROCESS"
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def die_at(folder: str, number: int, part: str = "", die=lambda event, arguments: os.kill(os.getpid(), signal.SIGKILL)) -> None:
    """From now on count operations that change something below ``folder``, and die at this one.

    Args:
        part: count only those on paths that have this in them.
        die: called at that operation with what Python's audit event says of it.
    """
    below = os.path.realpath(folder)
    state = {"count": 0, "within": False}

    def is_below(path) -> bool:
        if not isinstance(path, str | bytes):
            return False
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith(below) and part in path

    def counts(event: str, arguments: tuple) -> bool:
        if event == "open":
            return isinstance(arguments[2], int) and bool(arguments[2] & WRITING) and is_below(arguments[0])
        if event not in CHANGING:
            return False
        by_descriptor = any(isinstance(value, int) and value > 2 for value in arguments[1:]) and event in ("os.remove", "os.rmdir")
        return by_descriptor or any(is_below(path) for path in arguments[:2])  # shutil.rmtree names what it deletes by descriptor

    def hook(event: str, arguments: tuple) -> None:
        if state["within"] or (event != "open" and event not in CHANGING):
            return
        state["within"] = True
        try:
            if counts(event, arguments):
                state["count"] += 1
                if state["count"] == number:
                    die(event, arguments)
        finally:
            state["within"] = False

    sys.addaudithook(hook)


def kill_session(session: int, last: int | None = None) -> None:
    """Kill all processes of a session, one of them after the others."""
    for pid in processes_of_session(session) - {last}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            continue
    if last:
        os.kill(last, signal.SIGKILL)


def processes_of_session(session: int) -> set[int]:
    """The ids of a session's processes that still run."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] if entry.isdigit() else "Z"
            if state != "Z" and os.getsid(int(entry)) == session:
                found.add(int(entry))
        except OSError:  # it has just ended
            continue
    return found


def _process_name() -> str:
    """A stage's name and run, its workers' too; everything else is DVC's or whoever started it."""
    arguments = sys.orig_argv
    stage = next((argument.removeprefix("tasks.") for argument in arguments if argument.startswith("tasks.")), None)
    if stage is None:
        return os.environ.get(PROCESS, "dvc")
    options = dict(itertools.pairwise(arguments))
    run = f"@{options['--arm']}-{options['--seed']}" if "--arm" in options else ""
    os.environ[PROCESS] = stage + run
    return stage + run


def _die_with_session(event: str, arguments: tuple) -> None:
    if event == "open" and arguments[2] & os.O_TRUNC and os.path.isfile(arguments[0]) and int(os.environ[AT]) % 2:
        os.truncate(arguments[0], 0)  # as it is between being opened and being written
    what = {"process": _process_name(), "event": event, "path": str(arguments[0]), "time": time.time()}
    with open(os.environ[LOG], "a") as log:
        log.write(json.dumps(what) + "\n")
    kill_session(os.getsid(0), last=os.getpid())


if os.environ.get(AT) and _process_name() not in os.environ[SPARED].split():
    die_at(os.environ[BELOW], int(os.environ[AT]), die=_die_with_session)
