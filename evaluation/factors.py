"""The law of the factors: images drawn from random parts are judged by how often each part occurs in them.

A small network reads the factors (hair colour, glasses, ...) of each image. How often it reads each class, and each pair of classes, is
compared with how often it would in images drawn by the known probabilities, the law. The network makes mistakes; those it makes on
validation images are applied to the law too, so that they cancel. Nothing here is part of a training loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations_with_replacement
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from errors import PipelineError
from models.metric import Metric
from progress import progress_bar
from storage.files import read_json, require_format, sha256_file, write_json
from storage.weights import build_from, load_into, save_weights

FORMAT = "dae-factors-1"
RECORD, WEIGHTS = "factors.json", "factors.safetensors"
FACTOR_TV = Metric("factor_tv", "Factor law, total variation", -1)
MIN_ACCURACY = 0.9  # on validation images, of a factor that is judged by
SIDE = 32  # pixels that an image is brought to; what is finer is no factor
WIDTH = 16
NUM_STEPS, BATCH_SIZE, LEARNING_RATE, SEED = 400, 128, 3e-3, 0
MAX_PASSES = 32  # over few training images, which would be learnt by heart


class FactorsRecord(BaseModel):
    """What factors.json holds: factors in the order of their classes in the network."""

    format: str
    factors: list[str]
    num_classes: list[int]
    kept: list[str]
    weights_sha256: str


class FactorJudge(nn.Module):
    """A network that reads factors off images, and how often it is to read each pair of classes.

    Attributes:
        num_classes: of each factor.
        kept: names of the factors that are judged by.
        classes: of each factor, their places among the C classes of all factors, one after another.
        expected: (C, C), shares of images in which two classes are to be read together; on the diagonal, a class by itself.
    """

    def __init__(self, num_classes: dict[str, int], kept: Iterable[str] = ()):
        super().__init__()
        self.num_classes, self.kept = dict(num_classes), tuple(kept)
        ends = torch.tensor(list(num_classes.values())).cumsum(0).tolist()
        self.classes = {name: slice(end - number, end) for (name, number), end in zip(num_classes.items(), ends, strict=True)}
        self.network = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_block(12, WIDTH, 1),
            *_block(WIDTH, 2 * WIDTH, 2),
            *_block(2 * WIDTH, 2 * WIDTH, 1),
            *_block(2 * WIDTH, 4 * WIDTH, 2),
            nn.Flatten(),
            nn.Linear(4 * WIDTH * (SIDE // 8) ** 2, ends[-1]),
        )
        self.register_buffer("expected", torch.zeros(ends[-1], ends[-1], dtype=torch.float64))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (B, 3, H, W), H = W, to logits (B, num_classes) of each factor."""
        logits = self.network(to_side(images).float() / 127.5 - 1)
        return {name: logits[:, classes] for name, classes in self.classes.items()}

    @torch.inference_mode()
    def read(self, images: Tensor) -> Tensor:
        """Factors of uint8 images (B, 3, H, W): int64 (B, F), on the CPU."""
        logits = self(images.to(self.expected.device))
        return torch.stack([of_factor.argmax(1) for of_factor in logits.values()], 1).cpu()

    def total_variation(self, read: Tensor) -> float:
        """Between what was read in images (N, F) and what is expected: mean over kept factors and their pairs, with equal weight.

        0: the images follow the law; 1: they share nothing with it. N real images score above 0 by chance, more so for small N.
        """
        hits = torch.cat([F.one_hot(read[:, place], number) for place, number in enumerate(self.num_classes.values())], 1).double()
        apart = (hits.T @ hits / len(hits) - self.expected.cpu()).abs()  # (C, C)
        tables = [apart[self.classes[one], self.classes[other]] for one, other in combinations_with_replacement(self.kept, 2)]
        return torch.stack([table.sum() / 2 for table in tables]).mean().item()

    def calibrate(self, read: Tensor, true: Tensor, law: Tensor) -> dict[str, float]:
        """Choose the factors that are judged by, and learn how often each class and pair is to be read.

        Args:
            read: factors that this network reads in validation images (M, F).
            true: the true factors of these images.
            law: factors of many images (L, F) drawn by the law, to estimate it; the pictures are not needed.

        Returns:
            the accuracy of each factor.
        """
        accuracy = dict(zip(self.num_classes, (read == true).double().mean(0).tolist(), strict=True))
        self.kept = tuple(name for name, value in accuracy.items() if value >= MIN_ACCURACY)
        for one, other in combinations_with_replacement(enumerate(self.num_classes.items()), 2):
            (row, (row_name, num_rows)), (column, (column_name, num_columns)) = one, other
            cells = [each[:, row] * num_columns + each[:, column] for each in (law, true, read)]
            table = _expected(*cells, num_rows * num_columns).reshape(num_rows, num_columns).to(self.expected.device)
            self.expected[self.classes[row_name], self.classes[column_name]] = table
            self.expected[self.classes[column_name], self.classes[row_name]] = table.T
        return accuracy


def train_judge(images: Tensor, factors: Tensor, num_classes: dict[str, int], device: torch.device) -> FactorJudge:
    """Teach a network the factors of real images; the same images give the same network on one machine.

    Args:
        images: uint8 (N, 3, SIDE, SIDE), see ``to_side``.
        factors: int64 (N, F) of these images.
        num_classes: of each factor.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        judge = FactorJudge(num_classes).to(device)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers so small gain little from more, and lose much where other processes want the cores too
    try:
        _fit(judge, images, factors)
    finally:
        torch.set_num_threads(num_threads)
    return judge.eval().requires_grad_(False)


def with_factors(extractor: Callable[[Tensor], dict[str, Tensor]], judge: FactorJudge | None) -> Callable[[Tensor], dict[str, Tensor]]:
    """An extractor that gives the factors of a batch besides, as ``"factors"``; as it is where there is no judge."""
    if judge is None:
        return extractor
    return lambda images: extractor(images) | {"factors": judge.read(images)}


def factor_metrics(judge: FactorJudge | None, outputs: dict[str, Tensor]) -> dict[str, float]:
    """FACTOR_TV of what an extractor of ``with_factors`` gave; nothing where there is no judge, or none that can read."""
    return {FACTOR_TV.name: judge.total_variation(outputs["factors"])} if judge is not None and judge.kept else {}


def to_side(images: Tensor) -> Tensor:
    """Bring square uint8 images (B, 3, H, H) to SIDE pixels a side."""
    if images.shape[-1] == SIDE:
        return images
    resized = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def save_judge(folder: Path, judge: FactorJudge) -> None:
    """Write factors.safetensors and factors.json."""
    weights_sha256 = save_weights(folder / WEIGHTS, judge.state_dict())
    record = {"factors": list(judge.num_classes), "num_classes": list(judge.num_classes.values()), "kept": list(judge.kept)}
    write_json(folder / RECORD, {"format": FORMAT, **record, "weights_sha256": weights_sha256})


def judge_sha256(folder: Path) -> str | None:
    """Hash of the network's weights: values of two networks cannot be compared. None where a reference has no judge."""
    return sha256_file(folder / WEIGHTS) if (folder / WEIGHTS).exists() else None


def load_judge(folder: Path, device: torch.device) -> FactorJudge | None:
    """Read what ``save_judge`` wrote; None where there is none, as the images follow no known law.

    Raises:
        PipelineError: when it is in another format, or damaged.
    """
    if not (folder / RECORD).exists() and not (folder / WEIGHTS).exists():
        return None
    record = read_json(folder / RECORD, FactorsRecord)
    require_format(folder / RECORD, record["format"], FORMAT, "a factor judge", "dvc repro reference")
    for name in set(record["kept"]) - set(record["factors"]):
        raise PipelineError(f"{folder / RECORD}: kept: no factor is called {name!r}; delete the folder and run dvc repro reference")

    def build(config: dict) -> FactorJudge:
        return FactorJudge(dict(zip(config["factors"], config["num_classes"], strict=True)), config["kept"])

    return load_into(build_from(folder / RECORD, build, record), folder / WEIGHTS, record["weights_sha256"]).to(device)


def _block(num_in: int, num_out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()


def _fit(judge: FactorJudge, images: Tensor, factors: Tensor) -> None:
    device = judge.expected.device
    num_steps = min(NUM_STEPS, -(-MAX_PASSES * len(images) // BATCH_SIZE))
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.15)
    generator, waiting = torch.Generator().manual_seed(SEED), torch.empty(0, dtype=torch.int64)
    with progress_bar(num_steps, "factors", "step") as bar:
        for _ in range(num_steps):
            while len(waiting) < BATCH_SIZE:  # each image once before any comes again
                waiting = torch.cat([waiting, torch.randperm(len(images), generator=generator)])
            batch, waiting = waiting.split([BATCH_SIZE, len(waiting) - BATCH_SIZE])
            logits, targets = judge(images[batch].to(device)), factors[batch].to(device)
            loss = sum(F.cross_entropy(of_factor, targets[:, place]) for place, of_factor in enumerate(logits.values()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()


def _expected(law: Tensor, true: Tensor, read: Tensor, num_cells: int) -> Tensor:
    """Shares of the cells (K,) that the network reads in images that follow the law: the law times its confusion on validation images.

    A cell that no validation image is in counts as read without mistakes.
    """
    confusion = torch.bincount(true * num_cells + read, minlength=num_cells**2).reshape(num_cells, num_cells).double()
    missing = confusion.sum(1) == 0
    confusion[missing, missing] = 1
    return torch.bincount(law, minlength=num_cells).double() / len(law) @ (confusion / confusion.sum(1, keepdim=True))
