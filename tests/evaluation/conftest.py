"""Before anything loads numpy: one BLAS thread, as the stages have it (tasks/evaluate.py says why)."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
