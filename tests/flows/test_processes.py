"""What a run reads of what its commands print."""

import sys

from flows.processes import Processes, stage_environment
from tests.clone import PROJECT

PRINTED = b"first\n\r 0%|   |\r50%|#  |\r100%|##|\n\nsecond\r\nno more \xff"


def test_a_bar_that_draws_over_itself_is_one_line():
    lines = []
    command = [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({PRINTED!r})"]
    Processes(PROJECT, {}, stage_environment(), []).run(command, lines.append)
    assert lines == ["first", "100%|##|", "second", "no more \ufffd"]
