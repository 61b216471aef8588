"""``python -m flows.plan ARGUMENTS``: what ``dvc ARGUMENTS`` has yet to run at most, as JSON for announcing.py."""

import json
import sys
from pathlib import Path

from flows.graph import planned
from stage_times import read_seconds


def main() -> None:
    steps, num_considered = planned(sys.argv[1:])
    seconds = {name: read_seconds(Path(path)) for name, path in steps if path}
    known = {name: taken for name, taken in seconds.items() if taken is not None}
    print(json.dumps({"names": [name for name, _ in steps], "seconds": known, "num_considered": num_considered}))


if __name__ == "__main__":
    main()
