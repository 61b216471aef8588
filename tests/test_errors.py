"""Messages are one line each, whatever the names in them hold."""

import errno
import pickle

from errors import PipelineError, explain_os_error


def test_a_message_is_one_line_whatever_a_name_holds():
    error = PipelineError("a\nb\r\x1b[31m\u2028c\udcff.png: é ک\u200cو \\n; rename it")
    assert str(error) == "a\\nb\\r\\x1b[31m\\u2028c\\udcff.png: é ک\u200cو \\n; rename it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert explain_os_error(OSError(errno.EIO, "I/O", "a\nb")).startswith("a\\nb: I/O; check")
