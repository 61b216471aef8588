"""One script per claim of speed: ``python -m benchmarks.<claim>``. Each prints a ratio of two times measured in one run.

A ratio of alternating runs holds on a busy machine too, where seconds mean little. A script exits with 1 when its
claim does not hold.
"""

import tasks  # noqa: F401  before torch: the threads are set as in a stage
