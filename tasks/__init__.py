"""One module per DVC stage, run as ``python -m tasks.<stage>``."""

import os

# Set before torch loads OpenMP: by default its idle threads spin, and as soon as anything else wants the cores a step
# takes several times longer (measured: 7.7 s in place of 0.8 s).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
