"""What the report reads of the files that other stages have left: the keys and types that they must have at least."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from storage.shards import PreparedRecord

# Up to 30,000 years, and what a file system can hold; no seal vouches for durations, and sums of them must stay numbers.
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class DurationRecord(BaseModel):
    """A stage's durations file."""

    wall_seconds: Seconds
    cpu_seconds: Seconds
    peak_memory_bytes: Bytes
    output_bytes: Bytes
    resumed: bool
    code_version: str
    machine: str


class ProtocolRecord(BaseModel):
    """How distances were measured."""

    extractor: str
    extractor_weights_sha256: str
    extractor_input_size: int
    extractor_resize_filter: str
    image_size: int
    dataset_resize_filter: str
    split: str
    num_images: int
    reference_sha256: str
    kid_subset_size: int
    kid_num_subsets: int
    swd_num_patches_per_image: int
    swd_num_projections: int
    swd_scale: str
    factor_judge_sha256: str | None
    torch_fidelity: str


class ReferenceRecord(BaseModel):
    """Metrics of the reference stage."""

    protocol: ProtocolRecord
    floor: dict[str, float]


class EvaluationRecord(BaseModel):
    """Metrics of an evaluated run."""

    protocol: ProtocolRecord
    reconstruction_stage1: dict[str, float]
    reconstruction_stage2: dict[str, float]
    samples: dict[str, float]
    perfect_prior_stage1: dict[str, float]
    perfect_prior_stage2: dict[str, float]
    prior_gap: dict[str, float]


class AlarmRecord(BaseModel):
    """What a stage found wrong while it trained."""

    step: int
    found: str
    advice: str


class TrainingRecord(BaseModel):
    """Metrics of a stage that trains."""

    num_images_seen: int
    num_skipped_steps: int = 0
    alarms: dict[str, AlarmRecord] = {}


class AutoencoderRecord(TrainingRecord):
    """Metrics of a stage that trains the autoencoder or its decoder."""

    num_steps: int
    num_adversarial_steps: int
    num_operations: int


class SkippedRecord(BaseModel):
    name: str
    reason: str


class PreparationRecord(PreparedRecord):
    """What the report tells of the shards, beside what their manifest always holds."""

    skipped: list[SkippedRecord]
    ignored: dict[str, int]
