"""The configuration of a report."""

from __future__ import annotations

from typing import ClassVar

from slm.config.base import Job
from slm.config.pipeline import Figure


class ReportJob(Job):
    """Turn a run folder into one page; `out` gets the page, the tables and the heat map."""

    kind: ClassVar[str] = "report"
    format: ClassVar[int] = 1
    ignored: ClassVar[tuple[str, ...]] = ("run", "evaluation", "steps")

    run: str
    """Run folder."""
    evaluation: str
    """Folder with `summary.json`."""
    steps: dict[str, str] = {}
    """Other steps of the run, in their order: name -> folder."""
    title: str = ""
    """Title of the page."""
    figures: list[Figure] = []
    """What the run was expected to reach."""

    def inputs(self) -> dict[str, str]:
        """The evaluation, and every step of which curves, times and versions are shown."""
        return {"evaluation": self.evaluation, **self.steps}
