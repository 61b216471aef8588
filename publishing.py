"""Put finished outputs into place: all of them, or none if that fails. After a kill, the same call finishes what is left.

Staged files are linked (copied where linking fails), never moved, so that publishing can be repeated until its caller deletes them.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def publish(outputs: dict[Path, Path]) -> None:
    """Put finished files and folders (staged -> target) into place, and leave what is staged as it is.

    First everything is linked or copied beside its target, so that a full disk changes nothing. Then each takes its target's place.

    Raises:
        OSError: naming the path; every target is then what it was.
    """
    settle(outputs.values())
    changed: list[Path] = []
    try:
        for staged, target in outputs.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_linked(staged, _incoming(target))
        for target in outputs.values():
            changed.append(target)
            if os.path.lexists(target):
                target.rename(_outgoing(target))
            _incoming(target).rename(target)
    except BaseException:
        for target in reversed(changed):
            _put_back(target)
        for target in outputs.values():
            with contextlib.suppress(OSError):
                _delete(_incoming(target))
        raise
    for target in outputs.values():
        _delete(_outgoing(target))


def settle(targets: Iterable[Path]) -> None:
    """Clear away what a killed ``publish`` has left beside these targets; each is then whole, the old one or the new one."""
    for target in targets:
        if os.path.lexists(_outgoing(target)) and not os.path.lexists(target):
            _outgoing(target).rename(target)
        for beside in (_incoming(target), _outgoing(target)):
            _delete(beside)


def copy_linked(source: Path, target: Path) -> None:
    """Give a file, or every file of a folder, a second name; copy it where the disk is another or has no links."""
    if source.is_dir():
        target.mkdir()
        for entry in sorted(source.iterdir()):
            copy_linked(entry, target / entry.name)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        error.filename = error.filename or str(target)
        raise


def _put_back(target: Path) -> None:
    """Undo what was done to one target, as far as the disk lets us: the reason for it is about to be raised."""
    with contextlib.suppress(OSError):
        if not _incoming(target).exists():
            _delete(target)
        if os.path.lexists(_outgoing(target)):
            _outgoing(target).rename(target)


def _incoming(target: Path) -> Path:
    return target.with_name(f".{target.name}.incoming")


def _outgoing(target: Path) -> Path:
    return target.with_name(f".{target.name}.outgoing")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
