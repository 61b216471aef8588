"""One script per claim of speed: ``python -m benchmarks.<claim>``. Each prints a ratio of two times measured in one run.

Alternating runs make the ratio hold on a busy machine too, where seconds mean little; threads that wait without spinning
keep other work from upsetting one run and not the next. A script exits with 1 when its claim does not hold.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tasks  # noqa: F401  before torch: the other thread settings are a stage's
