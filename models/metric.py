"""What a measured number is called and how it is read. What measures it says so, beside the value; the report knows no metric by itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric, under the one name that it has in metrics, curves and the summary (there ``validation_`` may come before it).

    Attributes:
        name: its key, which holds its unit where that is not plain.
        label: the name people see.
        direction: -1 when smaller is better, 1 when larger is, 0 when neither holds or arms cannot be compared by it.
        unit: of the value; "%" for shares, which are stored as fractions.
        features: the extractor it rests on, where its label does not imply one.
        note: what a reader must know of it, in whole sentences.
    """

    name: str
    label: str
    direction: int = 0
    unit: str = ""
    features: str = ""
    note: str = ""

    @property
    def full_label(self) -> str:
        return f"{self.label} ({self.features})" if self.features else self.label


PSNR = Metric("psnr_db", "PSNR", 1, "dB")
