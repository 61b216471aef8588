"""All metrics between a set of images and the real ones: a new metric of images is computed and described here.

All images are compared as the bytes an image file would hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from evaluation.extractors import Extractor
from evaluation.factors import FACTOR_TV, FactorJudge, factor_metrics, with_factors
from evaluation.fidelity import Reference, distances, extract, fidelity_metrics, sample_metrics
from evaluation.pyramid import SWD, Level, PyramidPatches, sliced_wasserstein
from models.metric import PSNR, Metric
from sections import Evaluation


@dataclass(frozen=True)
class ImageSet:
    """What is kept of a set of images: what the extractor gave of them, and the projections of their patches."""

    outputs: dict[str, Tensor]
    projections: list[Level]

    @classmethod
    def of(
        cls,
        batches: Iterable[Tensor],
        num_images: int,
        extractor: Extractor,
        judge: FactorJudge | None,
        real: list[Level] | None = None,
    ) -> ImageSet:
        """Of ``num_images`` images in uint8 batches (B, 3, H, H).

        Args:
            real: projections of the real images that these are compared with; None: these are the real images.
        """
        patches = PyramidPatches(num_images, real)
        outputs = extract(with_factors(extractor, judge), patches.cut(batches))
        return cls(outputs, patches.projections())


@dataclass(frozen=True)
class Comparison:
    """What sets of images are measured with: the real images' features and projections, and the networks."""

    reference: Reference
    projections: list[Level]  # of the real images' patches
    extractor: Extractor
    judge: FactorJudge | None
    settings: Evaluation

    def look_at(self, batches: Iterable[Tensor], num_images: int) -> ImageSet:
        return ImageSet.of(batches, num_images, self.extractor, self.judge, self.projections)

    def of_reconstructions(self, images: ImageSet) -> dict[str, float]:
        """Metrics of decoded images beside their PSNR."""
        return distances(images.outputs, self.reference, self.extractor, self.settings) | self._others(images)

    def of_samples(self, images: ImageSet) -> dict[str, float]:
        """Metrics of generated images, or of any that have no originals."""
        return sample_metrics(images.outputs, self.reference, self.extractor, self.settings) | self._others(images)

    def _others(self, images: ImageSet) -> dict[str, float]:
        return {SWD.name: sliced_wasserstein(images.projections, self.projections), **factor_metrics(self.judge, images.outputs)}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The descriptions of all of these, for the legend."""
        return *fidelity_metrics(self.extractor.name), SWD, FACTOR_TV, PSNR
