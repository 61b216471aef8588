"""Write a trained generator, or its autoencoder for diffusers, as a folder that needs nothing of this project."""

import argparse
import os
import sys
from pathlib import Path

from errors import PipelineError, explain_os_error, is_out_of_memory
from export.package import require_free, write_diffusers, write_export, write_generator
from export.run import read_run
from source_check import PRODUCED

FORMATS = {"generator": write_generator, "diffusers": write_diffusers}


def export(root: Path, arm: str, seed: int, target: Path, layout: str = "generator") -> None:
    """Export one evaluated run of the project in ``root`` to the folder ``target``.

    Raises:
        PipelineError: when a stage has not been run, its results do not belong together, or ``target`` is taken.
    """
    require_free(target)  # before the weights are read
    real = Path(os.path.realpath(target))
    inside = next((name for name in PRODUCED if real.is_relative_to(os.path.realpath(root / name))), None)
    if inside:
        raise PipelineError(f"--to {target}: lies in {inside}/, whose files belong to the pipeline; name a folder elsewhere")
    run = read_run(root, arm, seed)
    write_export(target, lambda folder: FORMATS[layout](folder, run))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--arm", required=True, help="an entry of arms in params.yaml, evaluated")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--format", choices=FORMATS, default="generator", help="diffusers: the autoencoder alone, in its layout")
    arguments = parser.parse_args()
    target = Path(os.path.realpath(arguments.to))
    if arguments.seed < 0:
        sys.exit(f"error: export: --seed {arguments.seed}: must be 0 or larger")
    try:
        export(Path("."), arguments.arm, arguments.seed, target, arguments.format)
    except PipelineError as error:
        sys.exit(f"error: export: {error}")
    except OSError as error:
        if error.errno is None:
            raise
        error.filename = error.filename or str(target)
        sys.exit(f"error: export: {explain_os_error(error)}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit("error: export: out of memory; end what else uses it, then run it again")
    except KeyboardInterrupt:
        sys.exit("error: export: interrupted; nothing is half-written")
    print(f"{target}: README.md says how to use it")


if __name__ == "__main__":
    main()
