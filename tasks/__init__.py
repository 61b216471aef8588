"""One module per DVC stage, run as ``python -m tasks.<stage>``."""

import os

# Set before torch loads OpenMP: by default its idle threads spin, and as soon as anything else wants the cores a step
# takes several times longer (measured: 7.7 s in place of 0.8 s).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# NumPy's own BLAS spins likewise, and its results depend on its number of threads; torch does the heavy work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
