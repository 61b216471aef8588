"""From listed items to encoded images of the data set's size, in parallel, in order, and without holding them all."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from errors import PipelineError
from ingest.decoding import ImageError, decode_source_image, resize_and_crop, to_rgb
from ingest.items import Item, Reader
from storage.image_codec import encode_image

CHUNK_SIZE = 32  # items per message to a worker
CHUNKS_AHEAD = 4  # per worker: bounds what is held in memory


class Prepared(NamedTuple):
    """What became of one item: an encoded image and its label, or the reason why there is none."""

    item: Item
    image: bytes | None
    label: int | None
    reason: str | None


@dataclass(frozen=True)
class Preparation:
    """How items become images; the fields are those of the dataset section of params.yaml."""

    reader: Reader
    image_size: int
    resize_filter: str
    crop: str
    image_format: str
    max_image_pixels: int

    def prepare(self, item: Item) -> Prepared:
        try:
            image, label = self.reader.read(item)
            image = decode_source_image(image, self.max_image_pixels) if isinstance(image, bytes) else to_rgb(image, self.max_image_pixels)
        except ImageError as error:
            return Prepared(item, None, None, str(error))
        except OSError as error:
            return Prepared(item, None, None, f"cannot be read: {error.strerror or error}")
        fitted = resize_and_crop(image, self.image_size, self.resize_filter, self.crop)
        return Prepared(item, encode_image(np.asarray(fitted), self.image_format), label, None)

    def prepare_all(self, items: list[Item], num_processes: int) -> Iterator[Prepared]:
        """Prepare items in their order: in this process, or in ``num_processes`` others when that is more than 1.

        Raises:
            PipelineError: a worker was ended from outside, or the source as a whole is at fault.
        """
        if num_processes == 1 or len(items) <= CHUNK_SIZE:
            yield from map(self.prepare, items)
            return
        # forkserver: neither the threads of this process (progress bar, torch) nor its memory reach the workers.
        context = multiprocessing.get_context("forkserver")
        executor = ProcessPoolExecutor(num_processes, context, initializer=_start_worker, initargs=(self,))
        pending = deque()
        try:
            for start in range(0, len(items), CHUNK_SIZE):
                pending.append(executor.submit(_prepare_chunk, items[start : start + CHUNK_SIZE]))
                if len(pending) > CHUNKS_AHEAD * num_processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise PipelineError(
                "a worker process was ended from outside, most likely for lack of memory; lower runtime.num_threads and run again to resume"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


_preparation: Preparation | None = None


def _start_worker(preparation: Preparation) -> None:
    global _preparation
    _preparation = preparation
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the stage itself ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A stage that is killed cannot end its workers, and they would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _prepare_chunk(items: list[Item]) -> list[Prepared]:
    return [_preparation.prepare(item) for item in items]
