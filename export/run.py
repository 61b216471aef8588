"""Everything one finished run has left on disk, read and checked to belong together."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel
from torch import nn

from errors import PipelineError
from models.autoencoder import AutoencoderConfig, Decoder
from models.priors import config_of
from storage.decoders import load_decoder
from storage.files import MANIFEST, read_json, require_keys
from storage.frozen import Frozen, OfEncoder, load_frozen
from storage.priors import load_prior
from storage.seals import check_seals
from storage.shards import PreparedRecord, read_manifest

STAGES_WITH_ARTIFACTS = ("stage1", "freeze", "stage2", "prior", "sample")
STAGES_WITH_METRICS = ("stage1", "stage2", "prior", "evaluate")


class TrainedRecord(BaseModel):
    num_steps: int
    num_images_seen: int
    num_skipped_steps: int


class EvaluatedRecord(OfEncoder):
    protocol: dict
    samples: dict[str, float]
    prior: dict[str, float]
    reconstruction_stage2: dict[str, float]


class SamplesRecord(OfEncoder):
    sampling: dict


class FloorRecord(BaseModel):
    protocol: dict
    floor: dict[str, float]


class DatasetEntry(BaseModel):
    resize_filter: str
    crop: str


class DatasetRecord(PreparedRecord):
    """What the model card tells of the shards, beside what their manifest always holds."""

    dataset: DatasetEntry


RECORDS = {"stage1": TrainedRecord, "stage2": TrainedRecord, "prior": TrainedRecord, "evaluate": EvaluatedRecord}


@dataclass(frozen=True)
class Run:
    """One arm and seed, evaluated.

    Attributes:
        auxiliary: shape of the decoder that stage 1 trained the encoder against.
        label_counts: training images per class; empty when the prior is not class-conditional.
        data: the manifest of the shards it was trained on.
        sampling: the sampler and its settings that its samples were drawn with.
        metrics: what stage1, stage2, prior and evaluate recorded, by stage.
        floor: what real training images score under the same protocol.
        folders: where the weights are, by part.
    """

    arm: str
    seed: int
    frozen: Frozen
    decoder: Decoder
    auxiliary: AutoencoderConfig
    prior: nn.Module
    label_counts: list[int]
    data: dict
    sampling: dict
    metrics: dict[str, dict]
    floor: dict[str, float]
    folders: dict[str, Path]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def classes(self) -> list[str]:
        """What a class-conditional prior can be asked for."""
        return self.data["classes"] if self.label_counts else []

    @property
    def configs(self) -> dict[str, dict]:
        """What rebuilds each part."""
        shared = self.frozen.config
        return {
            "encoder": shared["autoencoder"],
            "bottleneck": shared["bottleneck"],
            "decoder": asdict(self.decoder.config),
            "prior": config_of(self.prior),
        }

    @property
    def num_parameters(self) -> dict[str, int]:
        parts = {"encoder": self.frozen.encoder, "bottleneck": self.frozen.bottleneck, "decoder": self.decoder, "prior": self.prior}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def read_run(root: Path, arm: str, seed: int) -> Run:
    """Read an evaluated run from the project in ``root``.

    Raises:
        PipelineError: when a stage has not been run, or what two stages have left does not belong together.
    """
    name = f"{arm}-{seed}"
    shards = root / "artifacts/shards"
    stage1, freeze, stage2, prior, sample = (root / "artifacts" / stage / name for stage in STAGES_WITH_ARTIFACTS)
    records = {stage: root / f"metrics/{stage}/{name}.json" for stage in STAGES_WITH_METRICS}
    reference = root / "metrics/reference.json"
    for path in (shards, stage1, freeze, stage2, prior, sample, *records.values(), reference):
        if not path.exists():
            raise PipelineError(f"{path} does not exist; run the stages that make it: dvc repro evaluate@{name}")

    evaluated = [root / "artifacts/reference", root / "artifacts/evaluate" / name]
    check_seals(root, [shards, stage1, freeze, stage2, prior, sample, *evaluated, *records.values(), reference], [name])
    frozen = load_frozen(freeze)
    decoder = load_decoder(stage2, frozen.sha256)
    network, label_counts = load_prior(prior, frozen.sha256)
    samples, metrics = read_manifest(sample), {stage: read_json(path, RECORDS[stage]) for stage, path in records.items()}
    require_keys(sample / MANIFEST, samples, SamplesRecord)
    frozen.require(samples["frozen_sha256"], str(sample))
    frozen.require(metrics["evaluate"]["frozen_sha256"], str(records["evaluate"]))
    floor = read_json(reference, FloorRecord)
    if floor["protocol"] != metrics["evaluate"]["protocol"]:
        raise PipelineError(f"{records['evaluate']} has another protocol than {reference}; run dvc repro evaluate@{name}")
    data = read_manifest(shards)
    require_keys(shards / MANIFEST, data, DatasetRecord)
    folders = {"encoder": freeze, "bottleneck": freeze, "decoder": stage2, "prior": prior}
    return Run(
        arm=arm,
        seed=seed,
        frozen=frozen,
        decoder=decoder,
        auxiliary=load_decoder(stage1, frozen.sha256).config,
        prior=network,
        label_counts=label_counts,
        data=data,
        sampling=samples["sampling"],
        metrics=metrics,
        floor=floor["floor"],
        folders=folders,
    )
