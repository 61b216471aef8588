"""What the pages of a running stage and of its run show: how far it is, the newest pictures, alarms, and what remains.

Stages know nothing of Prefect: progress.py keeps a file, and those that train a folder with live.json and pictures.png.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from pydantic import BaseModel, Field, NonNegativeInt

from errors import PipelineError
from flows.artifacts import data_url
from progress import WATCHED_VARIABLE, say_duration
from storage.files import read_json

POLL_SECONDS = 2.0
FORMAT = "dae-live-1"
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Progress(BaseModel):
    done: Finite
    total: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    unit: str
    description: str
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None


class _Alarm(BaseModel):
    step: NonNegativeInt
    found: str
    advice: str


class _Live(BaseModel):
    format: str
    caption: str | None = None
    alarms: dict[str, _Alarm] = {}


class Page:
    """Artifacts of the present run of a stage or, outside of one, of the flow; each is made once and then changed in place.

    Not through Prefect's own functions for that: they add an event with the whole artifact to its database each time.
    """

    def __init__(self) -> None:
        self._runs = {"task_run_id": runtime.task_run.id, "flow_run_id": runtime.flow_run.id}
        self._shown: dict[str, tuple[Any, tuple]] = {}

    def show(self, kind: str, key: str, data: Any, description: str) -> None:
        """Show this under a key, in place of what was there."""
        made, before = self._shown.get(key, (None, None))
        if before == (data, description):
            return
        client = get_client(sync_client=True)
        if made is None:
            made = client.create_artifact(ArtifactCreate(type=kind, key=key, data=data, description=description, **self._runs)).id
        else:
            change = ArtifactUpdate(data=data, description=description).model_dump(mode="json", exclude_unset=True)
            client.request("PATCH", "/artifacts/{id}", path_params={"id": made}, json=change)
        self._shown[key] = made, (data, description)


class StageWatch:
    """Watches one running stage and shows what it does on its page.

    Args:
        name: of the stage, as in dvc.yaml.
        folder: its live folder; what lies there already is of an earlier run.
        record: the file that progress.py keeps.
        log: told of each alarm.
    """

    def __init__(self, name: str, folder: Path, record: Path, log):
        self.name, self.folder, self.record, self.log = name, folder, record, log
        self.alarms: dict[str, dict] = {}
        self.progress: dict | None = None
        self.is_finished = False
        self._page, self._begun = Page(), time.monotonic()
        self._stale = {path: _identity(path) for path in (folder / "live.json", folder / "pictures.png")}

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the stage must have."""
        return {WATCHED_VARIABLE: str(self.record)}

    def seconds_left(self) -> float | None:
        """By the stage's own bar; None while it has none."""
        tree = self.progress
        return (tree["total"] - tree["done"]) / tree["rate"] if tree and tree["rate"] else None

    def look(self) -> None:
        """Show what has changed."""
        self.progress = _read(self.record, _Progress) or self.progress
        share = min(self.progress["done"] / self.progress["total"], 1.0) if self.progress else 0.0
        said = describe_progress(self.progress) if self.progress else "starting"
        if self.is_finished:
            share, said = 1.0, f"finished in {say_duration(time.monotonic() - self._begun)}"
        self._show("progress", 100 * share, said)
        live = self._read_live()
        if not live:
            return
        picture = self.folder / "pictures.png"
        if self._is_new(picture):
            self._stale[picture] = _identity(picture)
            if url := data_url(picture):
                self._show("image", url, live["caption"] or "")
        for signature, alarm in live["alarms"].items():
            if signature not in self.alarms:
                self.log.warning("alarm at step %d: %s; %s", alarm["step"], alarm["found"], alarm["advice"])
        self.alarms = {**self.alarms, **live["alarms"]}
        if self.alarms:
            self._show("markdown", describe_alarms(self.name, self.alarms), f"{self.name}: {', '.join(map(_words, self.alarms))}")

    def _show(self, kind: str, data: Any, description: str) -> None:
        what = {"image": "pictures", "markdown": "alarms"}.get(kind, kind)
        self._page.show(kind, _key(f"{what} {self.name}"), data, description)

    def _read_live(self) -> dict | None:
        path = self.folder / "live.json"
        tree = _read(path, _Live) if self._is_new(path) else None
        return tree if tree and tree["format"] == FORMAT else None

    def _is_new(self, path: Path) -> bool:
        return _identity(path) not in (None, self._stale[path])


def live_folder(root: Path, name: str) -> Path:
    """Where a stage of this name shows itself below the root of all live folders."""
    stage, _, run = name.partition("@")
    return root / stage / (run or stage)


@contextmanager
def watching(name: str, root: Path, log) -> Iterator[StageWatch]:
    """Watch a stage for the length of a block, in a thread, as it may print nothing for long.

    Args:
        root: of all live folders.
    """
    with TemporaryDirectory(prefix="dae-progress-") as folder:
        watch = StageWatch(name, live_folder(root, name), Path(folder, "progress.json"), log)
        with repeating(watch.look, log):
            yield watch
            watch.is_finished = True


@contextmanager
def repeating(look: Callable[[], None], log, seconds: float = POLL_SECONDS) -> Iterator[None]:
    """Call a function every few seconds in a thread, and once more at the end; what it raises is in the log, once, and ends that."""
    ended, broken = threading.Event(), threading.Event()

    def repeat() -> None:
        while not broken.is_set():
            is_last = ended.wait(0)
            try:
                look()
            except Exception as error:  # Prefect's server may be gone; the stage is not
                broken.set()
                log.warning("no longer shown while it runs: %s", " ".join(str(error).split()) or type(error).__name__)
            if is_last:
                return
            ended.wait(seconds)

    thread = threading.Thread(target=copy_context().run, args=[repeat], daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def describe_progress(tree: dict) -> str:
    """``400 of 800 steps, 12.3 steps/s, 33 s left``; a bar that is not of the stage as a whole begins with its name."""
    unit = {"step": "steps", "img": "images"}.get(tree["unit"], tree["unit"])
    parts = [f"{tree['description']}: {tree['done']:,.0f} of {tree['total']:,.0f} {unit}"]
    if tree["rate"]:
        parts.append(f"{tree['rate']:.3g} {unit}/s")
        parts.append(f"{say_duration((tree['total'] - tree['done']) / tree['rate'])} left")
    return ", ".join(parts)


def describe_alarms(name: str, alarms: dict[str, dict]) -> str:
    """Markdown: of each alarm what was found, when, and the advice."""
    parts = [f"# {name}"]
    for signature, alarm in alarms.items():
        parts += [f"## {_words(signature)}", f"Step {alarm['step']}: {alarm['found']}", f"**What to do:** {alarm['advice']}"]
    return "\n\n".join(parts)


def name_alarms(alarms: dict[str, dict]) -> str:
    """``; alarm: weak decoder (step 250)``, to be put behind the message of a state; nothing where there is none."""
    return "".join(f"; alarm: {_words(signature)} (step {alarm['step']})" for signature, alarm in alarms.items())


def _words(signature: str) -> str:
    return signature.replace("_", " ")


def _key(text: str) -> str:
    """As Prefect takes it."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def _identity(path: Path) -> tuple | None:
    """Another one each time a file is replaced, by whichever clock; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(path: Path, kind: type[BaseModel]) -> dict | None:
    try:
        return kind.model_validate(read_json(path, kind)).model_dump()
    except (PipelineError, OSError, ValueError):
        return None
