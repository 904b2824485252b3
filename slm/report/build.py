"""The report artifact: page, picture, tables; and the page once more at the top of the run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from slm.artifact import building, is_current, write_atomic, write_manifest
from slm.config.base import input_fingerprints
from slm.config.report import ReportJob
from slm.errors import MachineError
from slm.report.results import Results
from slm.report.tables import markdown, write_csv

log = logging.getLogger(__name__)

PAGE = "report.html"


def build_report(job: ReportJob, *, again: bool = False) -> Path:
    """Write the report, unless it is up to date.

    Args:
        job: what is reported.
        again: write it in any case.

    Returns:
        The page in the run folder.

    Raises:
        DataError: the evaluation is missing.
        MachineError: matplotlib or jinja2 is not installed.
    """
    page = Path(job.run) / PAGE
    inputs = input_fingerprints(job)
    current, _ = is_current(job.out, job.kind, job.identity(), inputs, format=job.format)
    if current and page.is_file() and not again:
        log.info("%s: up to date", page)
        return page
    try:
        from slm.report.page import render
        from slm.report.plots import heatmap_png
    except ImportError as error:
        raise MachineError(f"{error.name} is not installed", mend="pip install 'slm[report]'") from None
    results = Results(job)
    html = render(results, page.parent)
    with building(job.out) as folder:
        write_atomic(folder / PAGE, html)
        heatmap_png(results, folder / "heatmap.png")
        write_csv(results, folder / "results.csv")
        write_atomic(folder / "results.md", markdown(results))
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, format=job.format)
    write_atomic(page, html)
    log.info("report: %s", page)
    return page
