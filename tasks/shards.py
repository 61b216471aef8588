"""Turn the source images into WebDataset shards: one size, train and validation, labels kept, all that was skipped named."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from errors import PipelineError, one_line
from ingest.items import Item, Source
from ingest.preparation import Preparation, Prepared
from ingest.sources import describe_counts, open_source
from progress import progress_bar
from publishing import copy_linked
from stage import Stage
from storage.files import read_json, write_json
from storage.shards import write_encoded_shard, write_manifest

FINISHED = "finished.json"
NUM_NAMED = 3  # skipped images named in a message; the manifest names all


def run(params, inputs, outputs) -> dict:
    """Write train and validation shards and their manifest; resumes after the last finished shard."""
    dataset = params.dataset
    source = open_source(inputs.source, dataset.split)
    if params.prior.class_conditional and not source.classes:  # the prior would find out when all autoencoders are trained
        raise PipelineError(
            f"{inputs.source}: prior.class_conditional is true, but its images have no labels; put them into one subfolder per class, "
            "or set it to false"
        )
    if source.ignored:
        print(one_line(f"{inputs.source}: ignored {describe_counts(source.ignored)}"), file=sys.stderr)
    # Stretches of items in the order they are read, and the splits each fills: a name and at most how many images.
    if dataset.split == "random":
        items = _shuffled(source.splits["all"])
        _require_training_images(inputs.source, dataset.num_validation_images, len(items))
        stretches = [(items, {"validation": dataset.num_validation_images, "train": len(items)})]
    else:
        stretches = [(_shuffled(source.splits[split]), {split: len(source.splits[split])}) for split in ("validation", "train")]

    num_found = sum(len(items) for items, _ in stretches)
    writer = ShardWriter(dataset, inputs.source, num_found, outputs.scratch)
    preparation = Preparation(
        source.reader, dataset.image_size, dataset.resize_filter, dataset.crop, dataset.image_format, dataset.max_image_pixels
    )
    num_processes = params.runtime.num_threads or os.cpu_count() or 1
    with progress_bar(num_found, "shards", "img", initial=writer.num_items) as bar:
        num_done = writer.num_items  # by an earlier run that was ended
        for items, targets in stretches:
            stream = writer.watch(preparation.prepare_all(items[num_done:], num_processes), bar)
            num_done = max(0, num_done - len(items))
            for split, num_images in targets.items():
                writer.write_split(split, stream, num_images)
    return _publish(writer, source, dataset, outputs.artifact)


def _require_training_images(source: Path, num_validation_images: int, num_found: int) -> None:
    if num_validation_images >= num_found:
        raise PipelineError(
            f"{source}: dataset.num_validation_images is {num_validation_images}, but there are only {num_found} images; "
            "lower it, so that some are left for training"
        )


def _shuffled(items: Iterable[Item]) -> list[Item]:
    """A random order that depends on the keys alone: classes mix, and an added image moves no other."""
    return sorted(items, key=lambda item: hashlib.sha256(item.key.encode()).digest())


class ShardWriter:
    """Cuts one stream of prepared images into shards, and remembers in ``scratch`` which are finished."""

    def __init__(self, dataset, source: Path, num_found: int, scratch: Path):
        self.dataset, self.source, self.num_found, self.scratch = dataset, source, num_found, scratch
        record = scratch / FINISHED
        # Per shard: split, manifest entry, num_items taken from the stream for it, and those of them that were skipped.
        self.finished: list[dict] = read_json(record) if record.exists() else []
        self.num_items = sum(shard["num_items"] for shard in self.finished)
        self.skipped: list[dict] = [skip for shard in self.finished for skip in shard["skipped"]]

    def watch(self, stream: Iterable[Prepared], bar) -> Iterator[Prepared]:
        """Pass on the images that could be read, and count and name those that could not.

        Raises:
            PipelineError: as soon as too many have been skipped.
        """
        for prepared in stream:
            self.num_items += 1
            bar.update()
            if prepared.reason is None:
                yield prepared
                continue
            self.skipped.append({"name": prepared.item.name, "reason": prepared.reason})
            if len(self.skipped) > self.dataset.max_skipped_fraction * self.num_found:
                raise self._too_many_skipped()

    def write_split(self, split: str, stream: Iterator[Prepared], num_images: int) -> None:
        """Write shards of ``images_per_shard`` images until the split has ``num_images`` or the stream ends."""
        missing = num_images - sum(entry["num_images"] for entry in self.entries(split))
        while missing > 0:
            first = next(stream, None)
            if first is None:
                return
            images = islice(chain([first], stream), min(missing, self.dataset.images_per_shard))
            path = self.scratch / f"{split}-{len(self.entries(split)):06d}.tar"
            samples = ((prepared.item.key, prepared.image, prepared.label) for prepared in images)
            entry = write_encoded_shard(path, samples, self.dataset.image_format)
            missing -= entry["num_images"]
            self._finish(split, entry)

    def entries(self, split: str) -> list[dict]:
        return [shard["entry"] for shard in self.finished if shard["split"] == split]

    def _finish(self, split: str, entry: dict) -> None:
        num_items = self.num_items - sum(shard["num_items"] for shard in self.finished)
        skipped = self.skipped[sum(len(shard["skipped"]) for shard in self.finished) :]
        self.finished.append({"split": split, "entry": entry, "num_items": num_items, "skipped": skipped})
        write_json(self.scratch / FINISHED, self.finished)

    def _too_many_skipped(self) -> PipelineError:
        share = f"{len(self.skipped) / self.num_found:.2%}"
        named = "; ".join(f"{skip['name']} ({skip['reason']})" for skip in self.skipped[:NUM_NAMED])
        return PipelineError(
            f"{self.source}: {len(self.skipped)} of {self.num_found} images ({share}) cannot be used so far, "
            f"more than dataset.max_skipped_fraction {self.dataset.max_skipped_fraction:.2%}: {named}; mend or remove them, or raise it"
        )


def _publish(writer: ShardWriter, source: Source, dataset, artifact: Path) -> dict:
    """Link the shards into the artifact, write the manifest, return the metrics."""
    entries = {split: writer.entries(split) for split in ("train", "validation")}
    num_images = {split: sum(entry["num_images"] for entry in entries[split]) for split in entries}
    for split, number in num_images.items():
        if number == 0 or (split == "validation" and dataset.split == "random" and number < dataset.num_validation_images):
            raise PipelineError(f"{writer.source}: only {number} readable images are left for {split}; {len(writer.skipped)} were skipped")
    for entry in entries["train"] + entries["validation"]:
        copy_linked(writer.scratch / entry["name"], artifact / entry["name"])  # a killed run must find it there again
    drawn = {} if source.avatars_seed is None else {"avatars_seed": source.avatars_seed}
    write_manifest(
        artifact,
        entries,
        dataset.image_size,
        dataset.image_format,
        source.classes,
        source={"kind": source.kind, "path": dataset.source} | drawn,
        num_found=writer.num_found,
        num_skipped=len(writer.skipped),
        skipped=writer.skipped,
        ignored=dict(source.ignored),
        dataset=dataset.model_dump(),
    )
    if writer.skipped:
        print(f"{writer.source}: skipped {len(writer.skipped)} of {writer.num_found} images; the manifest names them", file=sys.stderr)
    return {
        "num_train_images": num_images["train"],
        "num_validation_images": num_images["validation"],
        "num_skipped": len(writer.skipped),
        "num_classes": len(source.classes),
        "num_bytes": sum(entry["num_bytes"] for entry in entries["train"] + entries["validation"]),
    }


STAGE = Stage("shards", run, sections=("dataset", "prior.class_conditional"), inputs={"source": "{source}"}, per_arm=False)

if __name__ == "__main__":
    STAGE.main()
