"""The one exception whose message is meant for the person at the keyboard, and the system's errors in the same form."""

import errno
import unicodedata

LONGEST = 2000  # characters of a message
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, halves of characters, separators of lines
REMEDIES = {
    **dict.fromkeys(FULL, "make room on that disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend its permissions or attributes, or those of the folder it is in"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY), "something else is in its place: move that away"),
    errno.ENOENT: "restore it, or find out what deletes it",
    errno.EBUSY: "end what uses it; a mount point cannot be replaced, only what is in it",
    errno.EIO: "check that disk",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "free memory",
}


class PipelineError(Exception):
    """A mistake in parameters, data or environment that the user can put right.

    The message is one line: what is wrong, where (file, dotted key, shard, sample), and what to do.
    A stage prints it without a traceback and exits with status 1.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message as one line that a terminal can show, whatever the names and values are that it repeats from a file.

    What would break a line, or a terminal, is escaped; of a very long one the middle is left out, as what to do stands at the end.
    """
    shown = "".join(char.encode("unicode_escape").decode() if unicodedata.category(char) in UNSHOWN else char for char in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"


def explain_os_error(error: OSError) -> str:
    """One line of an error that has an errno: the path, what is wrong, what to do."""
    # Where an error names two paths, the second is the one written to: a full disk is that one's.
    path = (error.filename2 if error.errno in FULL else None) or error.filename
    path = path.decode(errors="replace") if isinstance(path, bytes) else path
    what = " ".join(str(error.strerror or error).split())
    return one_line(f"{f'{path}: ' if path else ''}{what}; {REMEDIES.get(error.errno, 'mend that')}, then run it again")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU: torch says it in words, and passes it on from a loader's process as text.

    Or a loader's process was killed outright: the system does so where memory is short.
    """
    if isinstance(error, MemoryError):
        return True
    words = (
        "can't allocate memory",
        "out of memory",
        "MemoryError",
        "Unable to allocate",
        "bad_alloc",
        "Storage size calculation overflowed",
        "is killed by signal: Killed",
    )
    said = f"{error} {error.__cause__}"  # torch says which signal only in the cause
    return isinstance(error, RuntimeError) and any(word in said for word in words)


def explain_out_of_memory(error: BaseException) -> str:
    """One line of an allocation that failed."""
    first = str(error).strip().splitlines()
    return (
        f"out of memory{f' ({first[-1].strip()[:160]})' if first else ''}; lower the batch_size of this stage, raise "
        "num_microbatches where it trains, lower runtime.num_loader_processes or runtime.num_ray_tasks, or end what else uses "
        "the memory; then run it again to resume"
    )
