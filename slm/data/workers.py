"""What a process that builds parts does: it opens tokenizer and source for itself, once; a part is one call."""

from __future__ import annotations

import multiprocessing
import os
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from slm.config.interleave import TokensSchedule
from slm.config.listing import files_digest
from slm.config.shards import AS_TOKENIZER, TOKENIZER_FILES, AudioSource, ShardsJob, UnitsConfig, UnitsSource
from slm.data.cold import compress
from slm.data.parts import Record
from slm.data.samples import Sampler, check_dropped
from slm.data.sources import Source, open_source
from slm.data.sources.spoken import require_same_units
from slm.data.writer import ShardWriter
from slm.device import take_own_gpu
from slm.errors import DataError
from slm.parts import Part, Plan, Report
from slm.speech.unit_job import devices_of
from slm.stages import RECIPES
from slm.tokens.schedules import Splitter, token_splitter
from slm.tokens.vocabulary import (
    UnitSet,
    Vocabulary,
    add_units,
    load_tokenizer,
    text_vocabulary,
    without_units,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_EVERY = 64
"""Samples between two reports of progress, which is also how soon a worker stops when it is told to."""


def job_tokenizer(job: ShardsJob) -> tuple[PreTrainedTokenizerFast, Vocabulary]:
    """The tokenizer of a job with the units that the job declares; without any for a recipe of text alone.

    Raises:
        DataError: no tokenizer there, or its units are not those of the job.
    """
    return _load(job.tokenizer, job.units, files_digest(job.tokenizer, TOKENIZER_FILES))


@lru_cache(maxsize=1)  # with 10,000 units a tokenizer takes seconds to load
def _load(folder: str, units: UnitsConfig | None, _digest: str) -> tuple[PreTrainedTokenizerFast, Vocabulary]:
    tokenizer, vocabulary = load_tokenizer(folder)
    if units is None:
        tokenizer = without_units(tokenizer) if vocabulary.units else tokenizer
        return tokenizer, text_vocabulary(tokenizer)
    values = units.model_dump()
    if vocabulary.units is not None:
        if values["codebook"] == AS_TOKENIZER:
            values["codebook"] = vocabulary.units.codebook
        require_same_units(UnitSet(**values), vocabulary.units, f"tokenizer {folder}")
        return tokenizer, vocabulary
    if values["codebook"] == AS_TOKENIZER:
        raise DataError(
            "the tokenizer has no units, so it names no codebook",
            where=f"units.codebook: {AS_TOKENIZER}, tokenizer {folder}",
            mend="give the tokenizer of the expanded model, or units.codebook=SHA256",
        )
    return tokenizer, add_units(tokenizer, UnitSet(**values))


class PartBuilder:
    """Builds parts of one set, one after another.

    Args:
        job: what is built.
        plan: its parts.
        folder: where shards go.
    """

    def __init__(self, job: ShardsJob, plan: Plan, folder: Path) -> None:
        self.job, self.plan, self.folder = job, plan, folder
        self.tokenizer, self.vocabulary = job_tokenizer(job)

    @cached_property
    def source(self) -> Source:
        """The job's source."""
        return open_source(self.job, self.vocabulary.units, self._splitter())

    def _splitter(self) -> Splitter | None:
        source = self.job.source
        if isinstance(source, AudioSource | UnitsSource) and isinstance(source.interleave, TokensSchedule):
            return token_splitter(self.tokenizer)
        return None

    def build(self, part: Part, report: Report) -> Record:
        """Write a part's shards.

        Raises:
            DataError: a row can't be used; or this part alone loses more than 1 % of the whole set.
            StopBuilding: from `report`.
        """
        job, total = self.job, len(self.plan.parts)
        sampler = Sampler(RECIPES[job.recipe], self.tokenizer, max_length=job.max_length, overlong=job.overlong)
        examples = (
            example
            for span in part.spans
            for example in self.source.read(span.piece, span.start, span.stop, span.first)
        )
        seen = tokens = 0
        with ShardWriter(
            self.folder, vocabulary=self.vocabulary, group_size=job.group, shard_bytes=job.shard_mib * 2**20,
            first_shard=part.number, stride=total,
        ) as writer:  # fmt: skip
            for number, sample in enumerate(sampler.samples(examples), 1):
                writer.add(sample.ids, sample.supervised)
                tokens += len(sample.ids)
                if number % REPORT_EVERY == 0:
                    report(sampler.counts.examples - seen, tokens)
                    seen, tokens = sampler.counts.examples, 0
        report(sampler.counts.examples - seen, tokens)
        of = self.plan.examples
        if of is not None:
            check_dropped(sampler.counts, of=of, max_length=job.max_length, overlong=job.overlong, where=job.out)
        cold = [compress(self.folder / entry.file) for entry in writer.entries] if job.compress else []
        return Record(part.number, sampler.counts, writer.entries, writer.length_counts, cold)


def default_workers(job: ShardsJob) -> int:
    """A process for each processor; for each GPU where an extractor needs one."""
    devices = devices_of(job.source.speech, "auto") if isinstance(job.source, AudioSource) else ["cpu"]
    return len(os.sched_getaffinity(0)) if devices == ["cpu"] else len(devices)


def make_builder(job: ShardsJob, plan: Plan, folder: Path, worker: int) -> PartBuilder:
    """A worker's builder; which worker it is plays no part but for the GPU of an extractor."""
    if isinstance(job.source, AudioSource) and multiprocessing.parent_process() is not None:
        take_own_gpu(worker)
    return PartBuilder(job, plan, folder)
