"""Image data sets of the Hugging Face hub through its datasets library, which is installed only by those who use it."""

from __future__ import annotations

from typing import Any

from errors import PipelineError
from ingest.decoding import ImageError


def open_huggingface(
    where: str, dataset: str, config: str | None, revision: str | None, split: str, image_column: str, label_column: str | None
) -> HuggingFaceReader:
    """Open one split, fetching it into the library's own cache if it is not there.

    Raises:
        PipelineError: the library is missing, or the data set, split or a column cannot be had.
    """
    try:
        import datasets  # optional: not among the project's requirements
    except ImportError:
        raise PipelineError(f"{where}: recipe: huggingface needs the datasets library; install it: pip install datasets") from None
    try:
        table = datasets.load_dataset(dataset, config, split=split, revision=revision)
    except Exception as error:  # the library raises its own, its client's and the network's exceptions
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"{where}: cannot open split {split!r} of {dataset} ({type(error).__name__}: {reason}); "
            "check the names, and run once with a network"
        ) from None
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in table.column_names:
            raise PipelineError(f"{where}: {key}: {dataset} has no column {column!r}; it has: {', '.join(table.column_names)}")
    names = [] if label_column is None else getattr(table.features[label_column], "names", None)
    if names is None:
        raise PipelineError(f"{where}: label_column: {label_column!r} does not hold class labels; choose another, or leave it out")
    try:
        table = table.cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's and the library's own
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(f"{where}: image_column: {image_column!r} does not hold images ({reason}); choose another") from None
    return HuggingFaceReader(table, image_column, label_column, list(names))


class HuggingFaceReader:
    """One split, memory-mapped by the library; a pickled copy maps the same files."""

    def __init__(self, table: Any, image_column: str, label_column: str | None, classes: list[str]):
        self.table, self.image_column, self.label_column, self.classes = table, image_column, label_column, classes

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> tuple[bytes, int | None]:
        row = self.table[index]
        image = row[self.image_column]
        if image is None:
            raise ImageError("no image in this row")
        data = image["bytes"]
        if data is None:
            with open(image["path"], "rb") as file:
                data = file.read()
        return data, None if self.label_column is None else row[self.label_column]
