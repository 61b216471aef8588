"""Progress of long steps: a live bar on a terminal, a line every few seconds in a log."""

import sys

from tqdm import tqdm

LOG_INTERVAL_SECONDS = 10.0


def progress_bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """Return a tqdm bar showing rate and time left.

    Args:
        total: number of units in the whole step.
        description: what is being done, e.g. ``"stage1 dae-0"``.
        unit: what is counted, e.g. ``"img"`` or ``"step"``.
        initial: units already done, for a resumed step.
    """
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        mininterval=0.2 if is_terminal else LOG_INTERVAL_SECONDS,
        maxinterval=1.0 if is_terminal else LOG_INTERVAL_SECONDS,
        ascii=not is_terminal,
        dynamic_ncols=is_terminal,
        file=sys.stderr if is_terminal else LineStream(sys.stderr),
    )


class LineStream:
    """Turns tqdm's carriage returns into lines, so that logs and ``dvc repro | tee`` stay readable."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()
