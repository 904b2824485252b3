"""The readers that `benchmarks/loader.py` compares, each written and read by its own library.

    python benchmarks/loader_contenders.py NAME write CORPUS FOLDER
    python benchmarks/loader_contenders.py NAME read FOLDER

Run by the benchmark, each in the environment that has its library; so this file imports nothing but
numpy at its top. `read` makes one pass over everything that was written for each line on its standard
input, into batches of 8 rows of 4,096 tokens, and answers with a line of JSON: tokens, rows,
CPU-seconds of the process with all its threads, wall seconds. The first pass also sums ids and mask,
by which the benchmark sees that all read the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

ROWS, LENGTH = 8, 4096
SHARDS = 8

Sample = tuple[np.ndarray, np.ndarray]
"""Token ids, int32, and which of them are labels, bool; (tokens,) each."""
Batch = tuple[np.ndarray, np.ndarray, int, int]
"""ids int32 and mask bool, (8 · 4096,) each, zero where a row is empty; tokens in it, rows in it."""


class Corpus:
    """What `benchmarks/loader.py` drew: flat arrays on the disk, sample after sample."""

    def __init__(self, folder: str) -> None:
        self.lengths = np.load(Path(folder) / "lengths.npy")
        # Plain arrays over the mapping: slices of np.memmap itself cost several times as much.
        self.ids = np.asarray(np.memmap(Path(folder) / "ids.bin", np.int32, "r"))
        self.mask = np.asarray(np.memmap(Path(folder) / "mask.bin", np.bool_, "r"))

    def samples(self) -> Iterator[Sample]:
        """All samples, in order."""
        at = 0
        for length in self.lengths.tolist():
            yield self.ids[at : at + length], self.mask[at : at + length]
            at += length


def greedy(samples: Iterable[Sample]) -> Iterator[Batch]:
    """Batches in the order of the samples: a sample that does not fit starts the next row, none is cut."""
    ids, mask = np.zeros(ROWS * LENGTH, np.int32), np.zeros(ROWS * LENGTH, np.bool_)
    at, row_end, tokens = 0, LENGTH, 0
    for sample_ids, sample_mask in samples:
        length = len(sample_ids)
        if at + length > row_end:
            if row_end == ROWS * LENGTH:
                yield ids, mask, tokens, ROWS
                ids, mask = np.zeros(ROWS * LENGTH, np.int32), np.zeros(ROWS * LENGTH, np.bool_)
                row_end = tokens = 0
            at, row_end = row_end, row_end + LENGTH
        ids[at : at + length] = sample_ids
        mask[at : at + length] = sample_mask
        at += length
        tokens += length
    yield ids, mask, tokens, row_end // LENGTH


# --- ours -------------------------------------------------------------------------------------------------------------


def write_ours(corpus: Corpus, folder: Path) -> None:
    """A shard set of format 1."""
    from loader_corpus import write_shards

    write_shards(corpus.samples(), folder)


def read_ours(folder: Path) -> Callable[[], Iterator[Batch]]:
    """The order of a run: shuffled, best-fit rows, every group's crc checked; a pass is an epoch of its own order."""
    from slm.data.loader import PackedLoader, SourceSpec

    loader = PackedLoader([SourceSpec("all", str(folder))], pack_length=LENGTH, rows_per_step=ROWS, seed=0, workers=0)
    state = {"row": 0, "epoch": 0}

    def one_pass() -> Iterator[Batch]:
        state["epoch"] += 1
        end = loader.rows_for(float(state["epoch"]))
        while state["row"] < end:
            step, first = divmod(state["row"], ROWS)
            rows = loader.step(step)[first : first + end - state["row"]]
            ids, mask = np.zeros(ROWS * LENGTH, np.int32), np.zeros(ROWS * LENGTH, np.bool_)
            tokens = at = 0
            for row in rows:
                length = len(row.ids)
                ids[at : at + length] = row.ids
                mask[at : at + length] = row.supervised
                tokens += length
                at += LENGTH
            state["row"] += len(rows)
            yield ids, mask, tokens, len(rows)

    return one_pass


def read_stock_groups(folder: Path) -> Callable[[], Iterator[Batch]]:
    """Our shards through stock webdataset, in file order."""
    import webdataset as wds

    last = len(list(folder.glob("shard-*.tar"))) - 1
    url = str(folder / f"shard-{{000000..{last:06d}}}.tar") if last else str(folder / "shard-000000.tar")

    def samples() -> Iterator[Sample]:
        for group in wds.WebDataset(url, shardshuffle=False).decode():
            mask = np.unpackbits(group["mask.npy"], bitorder="little").view(np.bool_)
            ids, at = group["ids.npy"], 0
            for length in group["len.npy"].tolist():
                yield ids[at : at + length], mask[at : at + length]
                at += length

    return lambda: greedy(samples())


# --- numpy memmap -----------------------------------------------------------------------------------------------------


def read_memmap(folder: Path) -> Callable[[], Iterator[Batch]]:
    """The corpus itself, in file order."""
    corpus = Corpus(str(folder))
    return lambda: greedy(corpus.samples())


# --- stock webdataset, one sample per member --------------------------------------------------------------------------


def write_webdataset(corpus: Corpus, folder: Path) -> None:
    """One member a sample: its ids, then its mask, as raw bytes (the quickest of the usual encodings).

    A whole `mtime` keeps the extra header away that the writer's default, a time with fractions, needs.
    """
    import webdataset as wds

    per_shard = -(-len(corpus.lengths) // SHARDS)
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=per_shard, maxsize=1 << 40, verbose=0, mtime=0) as writer:
        for i, (ids, mask) in enumerate(corpus.samples()):
            writer.write({"__key__": f"{i:09d}", "bin": ids.tobytes() + mask.tobytes()})


def read_webdataset(folder: Path) -> Callable[[], Iterator[Batch]]:
    """In file order."""
    import webdataset as wds

    urls = sorted(map(str, folder.glob("*.tar")))
    return lambda: greedy(_split(sample["bin"]) for sample in wds.WebDataset(urls, shardshuffle=False))


def _split(raw: bytes) -> Sample:
    count = len(raw) // 5
    return np.frombuffer(raw, np.int32, count), np.frombuffer(raw, np.bool_, count, 4 * count)


# --- MosaicML Streaming -----------------------------------------------------------------------------------------------


def write_mosaicml(corpus: Corpus, folder: Path) -> None:
    """MDS with one column of raw bytes (quicker to read than array columns)."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"x": "bytes"}, size_limit=1 << 25) as writer:
        for ids, mask in corpus.samples():
            writer.write({"x": ids.tobytes() + mask.tobytes()})


def read_mosaicml(folder: Path) -> Callable[[], Iterator[Batch]]:
    """In file order."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=ROWS)
    return lambda: greedy(_split(sample["x"]) for sample in data)


# --- Hugging Face datasets, streaming ---------------------------------------------------------------------------------


def write_huggingface(corpus: Corpus, folder: Path) -> None:
    """Arrow files with a list of int32 and a list of bool."""
    from datasets import Dataset, Features, List, Value

    features = Features({"ids": List(Value("int32")), "mask": List(Value("bool"))})

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for ids, mask in corpus.samples():
            yield {"ids": ids, "mask": mask}

    made = Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache"))
    made.save_to_disk(str(folder / "set"), num_shards=SHARDS)


def _open_huggingface(folder: Path, form: str):
    from datasets import load_dataset

    files = sorted(map(str, (folder / "set").glob("*.arrow")))
    return load_dataset("arrow", data_files=files, split="train", streaming=True).with_format(form)


def read_huggingface(folder: Path) -> Callable[[], Iterator[Batch]]:
    """Sample by sample as numpy arrays: what its documentation shows; in file order."""
    data = _open_huggingface(folder, "numpy")
    return lambda: greedy((sample["ids"], sample["mask"]) for sample in data)


def read_huggingface_batches(folder: Path) -> Callable[[], Iterator[Batch]]:
    """Arrow tables of 256 samples, cut by hand without a copy: the quickest way through the same files."""
    data = _open_huggingface(folder, "arrow")

    def samples() -> Iterator[Sample]:
        for table in data.iter(batch_size=256):
            for ids, mask in zip(table.column("ids").chunks, table.column("mask").chunks, strict=True):
                flat, labels = ids.flatten().to_numpy(), mask.flatten().to_numpy(zero_copy_only=False)
                at = 0
                for length in ids.value_lengths().to_pylist():
                    yield flat[at : at + length], labels[at : at + length]
                    at += length

    return lambda: greedy(samples())


WRITERS = {
    "ours": write_ours,
    "webdataset": write_webdataset,
    "mosaicml": write_mosaicml,
    "huggingface": write_huggingface,
}
READERS = {
    "ours": read_ours,
    "memmap": read_memmap,
    "stock_groups": read_stock_groups,
    "webdataset": read_webdataset,
    "mosaicml": read_mosaicml,
    "huggingface": read_huggingface,
    "huggingface_batches": read_huggingface_batches,
}


def measure(one_pass: Callable[[], Iterator[Batch]], *, summed: bool) -> dict[str, float]:
    """One pass over everything."""
    tokens = rows = ids_sum = labels = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for ids, mask, count, filled in one_pass():
        tokens += count
        rows += filled
        if summed:
            ids_sum += int(ids.sum(dtype=np.int64))
            labels += int(mask.sum())
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return {"tokens": tokens, "rows": rows, **spent, "ids_sum": ids_sum, "labels": labels}


def main() -> None:
    """Write, or read whenever a line comes in."""
    name, action, *places = sys.argv[1:]
    if action == "write":
        WRITERS[name](Corpus(places[0]), Path(places[1]))
        return
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    one_pass = READERS[name](Path(places[0]))
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(measure(one_pass, summed=number == 0)), file=answers, flush=True)


if __name__ == "__main__":
    main()
