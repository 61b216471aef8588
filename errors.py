"""The one exception whose message is meant for the person at the keyboard."""


class PipelineError(Exception):
    """A mistake in parameters, data or environment that the user can put right.

    The message is one line: what is wrong, where (file, dotted key, shard, sample), and what to do.
    A stage prints it without a traceback and exits with status 1.
    """
