"""How good a codebook is on recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slm.config.codebook import CodebookEvaluation
from slm.errors import DataError
from slm.parts import make_plan
from slm.speech.audio import SAMPLE_RATE
from slm.speech.codebook import Usage, assign
from slm.speech.codebook_fit import network_device
from slm.speech.load import load_extractor
from slm.speech.unit_builder import check_units, hear_ahead
from slm.speech.unit_records import Skipped, UnitCounts, check_skipped
from slm.speech.unit_sources import open_recordings


def evaluate_codebook(config: CodebookEvaluation) -> dict[str, Any]:
    """Stream recordings through an extractor.

    Returns:
        `recordings`, `skipped`, `hours`, the figures of `Usage.figures`, and `units_a_second` with and without repeats.

    Raises:
        DataError: no recordings; more of them can't be used than the configuration allows.
        MachineError: the extractor gives units outside its codebook.
    """
    source = open_recordings(config.source)
    plan = make_plan(source.pieces(), size=config.batch, limit=config.source.rows)
    device = network_device(config.device)
    extractor = load_extractor(config.speech, device, config.dtype)[0]
    usage, counts = Usage(extractor.count), UnitCounts()
    for part in plan.parts:
        recordings = (each for span in part.spans for each in source.read(span.piece, span.start, span.stop))
        waves = list[np.ndarray]()
        for recording, wave in hear_ahead(recordings, config.hearing, config.readers):
            counts.recordings += 1
            if isinstance(wave, DataError):
                counts.skipped.append(Skipped(recording.id, wave.what))
            else:
                waves.append(wave)
                counts.milliseconds += round(1000 * len(wave) / SAMPLE_RATE)
        if waves:
            _add(usage, extractor, waves, device)
    check_skipped(counts, of=None, at_most=config.hearing.skipped_at_most, where=config.speech)
    figures = usage.figures()
    seconds = counts.milliseconds / 1000
    about = {"recordings": counts.recordings, "skipped": len(counts.skipped), "hours": round(seconds / 3600, 4)}
    rates = {"units_a_second": usage.frames / seconds, "units_a_second_removed": usage.changes / seconds}
    return about | figures | rates


def _add(usage: Usage, extractor: Any, waves: Sequence[np.ndarray], device: str) -> None:
    """Count waves; distances too, where the extractor has features."""
    if not hasattr(extractor, "features"):
        for units in extractor.units(waves):
            if len(units):
                usage.add(check_units(units, extractor.count, extractor.name), None, None)
        return
    for frames in extractor.features(waves):
        usage.add(assign(frames, extractor.centroids, device)[0], frames, extractor.centroids)
