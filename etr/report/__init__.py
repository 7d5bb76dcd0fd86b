"""Floor 6: one self-contained page per folder of runs: `write_report(folder, collect(folder))`."""

from etr.report.collect import collect
from etr.report.page import Picture, Sample, Section, write_report

__all__ = ["Picture", "Sample", "Section", "collect", "write_report"]
