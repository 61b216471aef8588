"""One module per DVC stage, run as ``python -m tasks.<stage>``. Importing this decides how waiting threads wait, before torch."""

import os

import psutil

BUSY_PERCENT = 25.0


def _wait_without_spinning_on_busy_cores() -> None:
    """OpenMP's waiting threads spin. Alone on the machine that makes a small network train almost twice as fast; beside other
    work it makes it many times slower (measured on two cores: 98 ms a step against 187 alone, 1,700 against 200 beside it).
    """
    if "OMP_WAIT_POLICY" not in os.environ and psutil.cpu_percent(interval=0.2) > BUSY_PERCENT:
        os.environ["OMP_WAIT_POLICY"] = "passive"


_wait_without_spinning_on_busy_cores()
# NumPy's own BLAS spins too, and its results depend on its number of threads; torch does the heavy work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
