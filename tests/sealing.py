"""Seals for folders that tests have made or changed by hand, as their stages would have left them."""

from pathlib import Path

from storage.seals import SEAL, write_seal


def seal(root: Path) -> Path:
    """Seal, again where it has been, every folder of a stage or run in ``root``, with its metrics and curves. Returns ``root``."""
    for stage in sorted(path for path in (root / "artifacts").iterdir() if path.is_dir()):
        runs = [path for path in sorted(stage.iterdir()) if path.is_dir()]
        for folder in runs or [stage]:
            (folder / SEAL).unlink(missing_ok=True)
            run = folder.name
            suffix = f"/{run}" if runs else ""
            paths = [f"metrics/{stage.name}{suffix}.json", f"curves/{stage.name}{suffix}.csv"]
            write_seal(folder, stage.name, run, {path: root / path for path in paths if (root / path).is_file()})
    return root
