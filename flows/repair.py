"""DVC's files made whole again: it writes dvc.lock and its rwlock in place, so that a kill at that moment cuts them off.

``python -m flows.repair``, run by ``make run`` and by every run of the flow, loses no finished stage: what a cut dvc.lock no longer
holds is taken from the last whole one, from git, or by the next ``dvc repro`` from DVC's run cache, which it wrote before.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from errors import PipelineError, explain_os_error
from flows.files import committed, write_whole
from yaml_file import NO_VALUE

LOCK = "dvc.lock"
LAST_WHOLE_LOCK = ".dvc/tmp/dvc.lock.whole"
RWLOCK = ".dvc/tmp/rwlock"
END = "  ."  # appended to a whole lock file, so that its last entry too is followed by something
HEADER = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^  ([^ \n].*):\n((?:   .*\n)*)", re.MULTILINE)
NEXT_ENTRY = re.compile(r"  [^ \n]")
CONFLICT = re.compile(r"^(<{7}|={7}|>{7})", re.MULTILINE)
DAMAGED = (yaml.YAMLError, RecursionError, *NO_VALUE)  # pydantic's ValidationError is a ValueError
SECONDS_OF_A_WRITE = 1.0  # another dvc may be writing right now


class _File(BaseModel):
    path: str


class _Out(_File):
    md5: str


class _Entry(BaseModel):
    """A stage of dvc.lock, as far as DVC insists on it."""

    model_config = ConfigDict(extra="forbid")

    cmd: str | list[str]
    deps: list[_File] = []
    params: dict[str, dict[str, Any]] = {}
    outs: list[_Out] = []


class _Lock(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, _Entry] = {}
    datasets: Any = None


def repair(root: Path) -> list[str]:
    """Mend what a kill has cut off; returns a line for each file that was.

    Raises:
        PipelineError: when dvc.lock holds a merge that git left to the user.
    """
    return [line for line in (_repair_lock(root), _repair_rwlock(root)) if line]


def _repair_lock(root: Path) -> str | None:
    earlier = _earlier(root)
    text = _read_settled(root / LOCK, lambda text: is_whole_lock(text) and not _lost(root, text, earlier))
    if text is None:
        return None
    if is_whole_lock(text):
        kept, taken = whole_entries(text + END), _lost(root, text, earlier)
        what = f"{LOCK} lacked stages that an earlier one has"
        if not taken:
            write_whole(root / LAST_WHOLE_LOCK, text.encode())
            return None
    elif CONFLICT.search(text):
        raise PipelineError(f"{LOCK}: holds a merge conflict; take one side whole (git checkout --ours {LOCK}): dvc repro mends the rest")
    else:
        kept = whole_entries(text)
        taken = earlier.keys() - kept
        what = f"{LOCK} was cut off while DVC wrote it"
    entries = {name: entry for name, entry in {**earlier, **kept}.items() if name in taken or name in kept}  # in the order of the earlier
    if entries:
        whole = HEADER + "".join(f"  {name}:\n{entry}" for name, entry in entries.items())
        write_whole(root / LOCK, whole.encode())
    else:
        (root / LOCK).unlink()
    return f"{what}: {len(kept)} stages kept, {len(taken)} taken from an earlier one; what has finished since comes back from DVC's cache"


def _lost(root: Path, text: str, earlier: dict[str, str]) -> set[str]:
    """Stages of dvc.yaml that an earlier lock file has and this whole one lacks.

    Either it was cut off exactly at the end of an entry, or another commit was checked out, in which they had not run. Taking them back
    is harmless: DVC compares each with its files.
    """
    missing = earlier.keys() - whole_entries(text + END)
    if not missing:
        return set()
    from flows.graph import stage_names  # loads DVC, for a second or two

    with chdir(root):
        return missing & stage_names()


def _earlier(root: Path) -> dict[str, str]:
    """The entries of the last whole lock file, and of git's last commit where that has none."""
    return {**whole_entries(committed(root, LOCK) + END), **whole_entries((_read(root / LAST_WHOLE_LOCK) or "") + END)}


def _repair_rwlock(root: Path) -> str | None:
    text = _read_settled(root / RWLOCK, _is_json)
    if text is None or _is_json(text):
        return None
    (root / RWLOCK).unlink(missing_ok=True)
    return f"{RWLOCK} was cut off while DVC wrote it: deleted, as it says only which dvc commands are at work"


def is_whole_lock(text: str) -> bool:
    """Whether DVC would take this for a lock file, its last line has an end, and its last stage has outputs: DVC writes them last."""
    try:
        lock = _Lock.model_validate(yaml.load(text, yaml.CSafeLoader))
    except DAMAGED:
        return False
    last = list(lock.stages.values())[-1:]
    return text.endswith("\n") and all(entry.outs for entry in last)


def whole_entries(text: str) -> dict[str, str]:
    """The stages of a lock file that may end anywhere, each as text: values must stay as DVC has written them.

    One that nothing follows is left out, as it may lack something.
    """
    entries = {}
    for match in ENTRY.finditer(text):
        name, entry = match.groups()
        try:
            _Entry.model_validate(yaml.load(entry, yaml.CSafeLoader))
        except DAMAGED:
            continue
        if NEXT_ENTRY.match(text, match.end()):
            entries[name] = entry
    return entries


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _read_settled(path: Path, is_fine) -> str | None:
    """The text of a file, read again when it is not fine: it may be being written."""
    text = _read(path)
    if text is not None and not is_fine(text):
        time.sleep(SECONDS_OF_A_WRITE)
        text = _read(path)
    return text


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def main() -> int:
    try:
        for line in repair(Path(".")):
            print(f"mended: {line}")
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {explain_os_error(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
