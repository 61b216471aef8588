"""The graph as DVC has it, and why it would run a stage. All use of DVC's Python API is here: it is not a stable one.

DVC takes a stage's paths from the present directory, so that must be the folder of dvc.yaml.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.flatten import flatten
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from errors import PipelineError

NEVER_RUN = "it has never run"
POLL_SECONDS = 2.0
_DVC = threading.RLock()  # DVC's API is not safe in threads


class Settings(BaseModel):
    """What ``meta`` of a stage in dvc.yaml may say to a flow.

    Attributes:
        slot: the slot in which it occupies a place while it runs; a run has a fixed number of them. None: it waits for no place.
        retries, retry_delay_seconds: how often it is tried again, and after how long. It resumes from its checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slot: str | None = None
    retries: NonNegativeInt = 0
    retry_delay_seconds: NonNegativeInt = 5


@dataclass(frozen=True)
class Node:
    """One stage: name as dvc.yaml's matrix makes it, stages it needs, settings, and paths it writes."""

    name: str
    upstream: tuple[str, ...]
    settings: Settings
    outs: tuple[str, ...]
    metrics: tuple[str, ...]


def load_graph() -> dict[str, Node]:
    """Every stage of dvc.yaml by name, each after those it needs.

    Raises:
        PipelineError: when dvc.yaml is missing, empty or not valid, a stage's ``meta`` is not, or this is no git repository.
    """
    import networkx

    try:
        with _DVC, Repo(_wait_for_lock=True) as repo:
            graph = repo.index.graph  # an edge goes from a stage to one it needs
            stages = list(networkx.dfs_postorder_nodes(graph))
            nodes = {stage.name: _node(stage, graph.successors(stage)) for stage in stages}
    except ValidationError as error:
        raise PipelineError(f"dvc.yaml: {' '.join(str(error).split())}") from None
    except DvcException as error:
        raise _refusal(error) from None
    if not nodes:
        raise PipelineError("dvc.yaml: is not here or has no stages, so that there is nothing to run; git checkout dvc.yaml brings it back")
    return nodes


def stage_names() -> set[str]:
    """Names of the stages of dvc.yaml; none where there is no such file, or DVC cannot read it and is to say so itself."""
    try:
        with _DVC, Repo() as repo:
            return {stage.name for stage in repo.index.stages if isinstance(stage, PipelineStage)}
    except DvcException:
        return set()


def _node(stage, upstream) -> Node:
    outs = [out for out in stage.outs if not out.metric]
    return Node(
        name=stage.name,
        upstream=tuple(sorted(other.name for other in upstream)),
        settings=Settings.model_validate(stage.meta or {}),
        outs=tuple(out.def_path for out in outs),
        metrics=tuple(out.def_path for out in stage.outs if out.metric),
    )


def select(graph: dict[str, Node], stages: list[str], downstream: bool) -> tuple[set[str], set[str]]:
    """The stages that are asked for by name or group, and these with all that they need.

    Args:
        stages: names such as ``prior@dae-0`` or groups such as ``prior``; none: all.
        downstream: also everything that needs what is asked for.

    Raises:
        PipelineError: when a name is neither.
    """
    groups = {name.split("@")[0] for name in graph}
    for asked in stages:
        if asked not in graph and asked not in groups:
            raise PipelineError(f"stages: dvc.yaml has no {asked!r}; groups: {', '.join(sorted(groups))}; a member: {max(graph, key=len)}")
    targets = {name for name in graph if not stages or name in stages or name.split("@")[0] in stages}
    if downstream:
        for name, node in graph.items():  # in order, so one pass reaches everything
            if targets & set(node.upstream):
                targets.add(name)
    needed = set(targets)
    for name in reversed(graph):
        if name in needed:
            needed |= set(graph[name].upstream)
    return targets, needed


def reasons_to_run(name: str, wait: Callable[[str], None]) -> list[str]:
    """Why DVC would run this stage or restore what it makes; nothing when it would do neither.

    Args:
        wait: called with a line each time somebody else's ``dvc`` is in the way; may raise to give up.
    """
    return _ask(lambda repo: _reasons(repo, name), wait)


def unchanged(graph: dict[str, Node], wait: Callable[[str], None]) -> set[str]:
    """Stages that DVC would neither run nor restore, nor any that they need.

    Args:
        graph: what ``load_graph`` returned.
        wait: as for ``reasons_to_run``.
    """
    changed, found = _ask(lambda repo: repo.status(), wait), set()
    for name, node in graph.items():
        if name not in changed and found >= set(node.upstream):
            found.add(name)
    return found


def planned(arguments: list[str]) -> tuple[list[tuple[str, str | None]], int]:
    """What ``dvc ARGUMENTS``, a ``dvc repro`` or ``dvc exp run`` at work, has yet to run at most.

    It may be less: a stage may come from the cache, or make what it made before. DVC leaves its lock to others while a command
    runs.

    Returns:
        the stages in DVC's order, each with the path in DVC's cache of the durations it last left, and how many the command looks at.
    """
    from dvc.cli import parse_args
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    options = parse_args(arguments)
    with _DVC, Repo() as repo, repo.lock:
        graph = get_active_graph(repo.index.graph)
        everything = options.pipeline or options.all_pipelines
        is_glob = getattr(options, "glob", False)  # of repro only
        named = [] if options.all_pipelines else collect_stages(repo, options.targets or ["dvc.yaml"], options.recursive, is_glob)
        is_single = options.single_item and not everything
        steps = named if is_single else plan_repro(graph, named, options.pipeline, options.downstream and not everything)
        names = _may_run(graph, steps, {step.name for step in steps} if options.force else set())
        return [(step.name, _cached_durations(step)) for step in steps if step.name in names], len(steps)


def may_run(names: Collection[str], forced: set[str]) -> set[str]:
    """Which of these stages would run at most, or be restored, if these were reproduced in their order.

    Args:
        forced: those that run though nothing has changed.
    """
    try:
        with _DVC, Repo(_wait_for_lock=True) as repo, repo.lock:
            stages = {stage.name: stage for stage in repo.index.stages}
            return _may_run(repo.index.graph, [stages[name] for name in names], forced)
    except DvcException as error:
        raise _refusal(error) from None


def _may_run(graph, steps: list, forced: set[str]) -> set[str]:
    found: set[str] = set()
    for step in steps:
        if step.name in forced or any(other.name in found for other in graph.successors(step)) or _has_changed(step):
            found.add(step.name)
    return found


def _has_changed(stage) -> bool:
    try:
        return bool(stage.status())
    except LockError:  # somebody is making it, or what it reads
        return True


def _cached_durations(stage) -> str | None:
    """Where DVC keeps the durations that dvc.lock names: their place in the project is empty while the stage runs."""
    return next((out.cache_path for out in stage.outs if out.def_path.startswith("durations/") and out.hash_info), None)


def _ask(question: Callable[[Repo], Any], wait: Callable[[str], None]) -> Any:
    while True:
        try:
            with _DVC, Repo(_wait_for_lock=True) as repo:
                return question(repo)
        except LockError as error:
            wait(str(error).splitlines()[0])
            time.sleep(POLL_SECONDS)
        except DvcException as error:
            raise _refusal(error) from None


def _refusal(error: DvcException) -> PipelineError:
    """What DVC says of its own files, in one line."""
    said = " ".join(str(error).split())
    return PipelineError(f"DVC: {said}; {'git init makes it one' if 'not a git repository' in said else 'dvc status says where'}")


def _reasons(repo: Repo, name: str) -> list[str]:
    status = repo.status(targets=[name]).get(name, [])
    if not status:
        return []
    (stage,) = repo.stage.collect(name)
    if not any(out.hash_info for out in stage.outs):
        return [NEVER_RUN]
    reasons: list[str] = []
    deleted: list[str] = []
    for entry in status:
        if isinstance(entry, str):  # "changed command"
            reasons.append(entry)
            continue
        for kind, items in entry.items():  # "changed deps", "changed outs"
            for path, what in items.items():
                if isinstance(what, dict):
                    reasons += _changed_params(stage, path)
                elif kind == "changed outs" and what == "deleted":
                    deleted.append(path)
                else:
                    reasons.append(f"{path} is {what}")
    if deleted:
        reasons.append(f"{deleted[0]} is deleted" if len(deleted) == 1 else f"{len(deleted)} outputs are deleted")
    return reasons


def _changed_params(stage, path: str) -> list[str]:
    dependency = next(dependency for dependency in stage.params if str(dependency) == path)
    old, new = flatten(dependency.hash_info.value or {}), flatten(dependency.read_params(flatten=False))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key) or (key in old) != (key in new))
    return [f"param {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]
