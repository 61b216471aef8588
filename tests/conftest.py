"""Before anything loads numpy or torch: threads as the stages have them (tasks/__init__.py says why)."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
