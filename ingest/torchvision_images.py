"""Any image data set of torchvision.datasets that pairs images with class indices."""

from __future__ import annotations

import inspect
from typing import Any

from PIL import Image

from errors import PipelineError
from ingest.decoding import one_line_reasons


def open_torchvision(where: str, dataset: str, root: str, arguments: dict[str, Any]) -> TorchvisionReader:
    """Open one split, fetching it into ``root`` if it is not there.

    Args:
        where: the recipe file, for messages.
        dataset: name of a class in torchvision.datasets.
        arguments: what selects the split, such as ``{"train": True}`` or ``{"split": "test"}``.

    Raises:
        PipelineError: unknown class or argument, or the data can neither be found nor fetched.
    """
    import torchvision  # takes a second: only for sources that need it

    kind = getattr(torchvision.datasets, dataset, None)
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise PipelineError(f"{where}: dataset: torchvision.datasets has no data set {dataset!r}; its documentation lists them")
    known = inspect.signature(kind).parameters
    unknown = [name for name in arguments if name not in known or name in ("root", "download")]
    if unknown:
        raise PipelineError(f"{where}: splits: {dataset} takes no argument {unknown[0]!r} here; it takes: {', '.join(known)}")
    reader = TorchvisionReader(dataset, {"root": root, **arguments} if "root" in known else dict(arguments))
    try:
        reader.open(download=True)
    except MemoryError:
        raise
    except Exception as error:  # no network, wrong checksum or split name, an argument that is missing or of another type, damaged files
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"{where}: torchvision cannot open {dataset} in {root} ({type(error).__name__}: {reason}); "
            f"check the arguments under splits ({', '.join(known)}), "
            "run once with a network, or copy that folder from a machine that has it"
        ) from None
    return reader


class TorchvisionReader:
    """One split; a worker process that receives a copy opens the files for itself."""

    def __init__(self, dataset: str, arguments: dict[str, Any]):
        self.dataset, self.arguments = dataset, arguments
        self.opened: Any = None
        self.classes: list[str] | None = None  # None: the library does not name them
        self.num_images = 0

    def open(self, download: bool) -> None:
        import torchvision

        kind = getattr(torchvision.datasets, self.dataset)
        takes_download = "download" in inspect.signature(kind).parameters
        self.opened = kind(**self.arguments, **({"download": download} if takes_download else {}))
        names = getattr(self.opened, "classes", None)
        self.classes = None if names is None else [str(name) for name in names]
        self.num_images = len(self.opened)

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> tuple[Image.Image, Any]:
        if self.opened is None:
            self.open(download=False)
        with one_line_reasons():  # it opens and decodes files itself
            image, label = self.opened[index]
        if not isinstance(image, Image.Image):
            kind = type(image).__name__
            raise PipelineError(f"torchvision.datasets.{self.dataset} yields {kind} instead of images; use another data set")
        return image, label

    def __getstate__(self) -> dict:
        return {**self.__dict__, "opened": None}
