"""The seal on what a stage hands on: which stage and run made it, and the hash of every file, metrics and curves included.

It lies in the stage's folder under artifacts/. Who reads the folder compares: damage, another arm's files or another seed's are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from errors import PipelineError
from storage.files import read_json, sha256_file, write_json

FORMAT = "dae-seal-1"
SEAL = "seal.json"
ARTIFACTS = "artifacts"
HASHED_BY_MANIFEST = (".tar", ".arrow")  # large: manifest.json has their hashes, and whoever opens one compares


class SealRecord(BaseModel):
    """What seal.json holds; ``files`` are names in its folder, ``records`` paths in the project."""

    format: Literal["dae-seal-1"]
    stage: str
    run: str
    files: dict[str, str]
    records: dict[str, str]


def write_seal(folder: Path, stage: str, run: str, records: dict[str, Path]) -> None:
    """Seal a finished folder.

    Args:
        records: path in the project -> the stage's metrics or curves that will be there.
    """
    seal = {"format": FORMAT, "stage": stage, "run": run, "files": _hashes(folder)}
    write_json(folder / SEAL, seal | {"records": {path: sha256_file(file) for path, file in records.items()}})


def check_seals(root: Path, paths: Iterable[Path], runs: Sequence[str]) -> None:
    """Hold folders under artifacts/, and the metrics and curves among the paths, to their seals.

    Args:
        root: the project.
        paths: folders of one run, of a stage that runs once, or of all runs of a stage; metrics and curves, or the folders they are in.
        runs: names of the runs that are wanted, ``<arm>-<seed>``.

    Raises:
        PipelineError: naming the file, and what the seal says of it.
    """
    paths, records = list(paths), {}
    for folder in paths:
        top, *rest = folder.relative_to(root).parts
        if top == ARTIFACTS:
            is_of_all_runs = len(rest) == 1 and (folder / runs[0]).is_dir()
            for sealed in [folder / run for run in runs] if is_of_all_runs else [folder]:
                records |= _check_folder(sealed, rest[0], runs)
    for name, sha256 in records.items():
        if (root / name).is_file() and any((root / name).is_relative_to(path) for path in paths):
            _compare(root / name, sha256, sha256_file(root / name))


def _check_folder(folder: Path, stage: str, runs: Sequence[str]) -> dict[str, str]:
    """Hold one folder to its seal; returns the records it names."""
    seal = read_json(folder / SEAL, SealRecord)
    expected = folder.name if folder.name in runs else stage
    if (seal["stage"], seal["run"]) != (stage, expected):
        raise PipelineError(f"{folder}: is of {seal['stage']} {seal['run']}, not of {stage} {expected}; {_remedy(folder)}")
    present = _hashes(folder)
    for name in sorted(seal["files"].keys() ^ present.keys()):
        what = "is missing" if name in seal["files"] else f"is none of the files that {stage} has left there"
        raise PipelineError(f"{folder / name}: {what}; {_remedy(folder)}")
    for name, sha256 in seal["files"].items():
        _compare(folder / name, sha256, present[name])
    return seal["records"]


def _hashes(folder: Path) -> dict[str, str]:
    """Name -> hash, without the hidden files of file managers, which no stage writes or reads."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL and not file.name.startswith(".")]
    files = [file for file in files if file.suffix not in HASHED_BY_MANIFEST]
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def _compare(file: Path, expected: str, found: str) -> None:
    if found != expected:
        raise PipelineError(f"{file}: damaged or edited (its SHA-256 is {found[:16]}, its seal says {expected[:16]}); {_remedy(file)}")


def _remedy(path: Path) -> str:
    return f"restore it with dvc checkout, or delete {path} and run dvc repro"
