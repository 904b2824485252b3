"""Bytes of a training run: exact for states, arithmetic for what is held meanwhile.

ZeRO-3 cuts every parameter into equal parts, one a rank, the last one padded; ZeRO-1 and 2 keep parameters
whole and cut the flattened trainable ones, padded to twice the number of ranks. What trains has an fp32 copy,
two fp32 moments and fp32 gradients; frozen weights have none of these. An anchor keeps where it started, in the
dtype that the weights were loaded in. Vocabulary tables that are split by rows over the ranks are in none of ZeRO's
partitions: they have all of this beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm.config.stage import AnchorConfig, StageConfig
from slm.config.zero import offload_device
from slm.plan.flops import recomputed_share
from slm.plan.shapes import EMBEDDING, HEAD, NEW_EMBEDDING, NEW_HEAD, ModelShape, Weight

DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "allgather_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "zero_hpz_partition_size": 1,
    "sub_group_size": 1e9,
}
"""DeepSpeed 0.19.8's own, where the JSON is silent."""
PROCESS = 3e9
"""Resident memory of a rank that has imported torch and DeepSpeed and has a device context (measured: 0.6 to 3 GB)."""
TABLES = (EMBEDDING, HEAD, NEW_EMBEDDING, NEW_HEAD)


@dataclass(frozen=True)
class Setting:
    """Everything that memory depends on besides the weights.

    Attributes:
        world, hosts: ranks in all, and on how many hosts.
        number: bytes of a weight while computing: 2 (bf16) or 4 (fp32).
        zero: the DeepSpeed JSON.
        tokens: of one micro-batch of a rank.
        recomputed: share of layers whose activations are recomputed.
        chunk: positions whose logits are held at a time.
        split_tables: embeddings and head are split by rows over the ranks and never gathered.
        anchored: optimizer groups (`matrix`, `vector`, `vocabulary`) that an anchor holds.
    """

    world: int
    hosts: int
    number: int
    zero: dict[str, Any]
    tokens: int
    recomputed: float
    chunk: int
    split_tables: bool = False
    anchored: frozenset[str] = frozenset()

    @property
    def stage(self) -> int:
        """1, 2 or 3."""
        return int(self.zero["zero_optimization"]["stage"])

    @property
    def communicated(self) -> int:
        """Bytes of a gradient's number while ranks sum it: 4, unless the JSON says otherwise."""
        return {"fp16": 2, "bf16": 2}.get(self.zero.get("communication_data_type", "fp32"), 4)

    def option(self, name: str) -> float:
        """A number of the JSON, or DeepSpeed's default."""
        return float(self.zero["zero_optimization"].get(name, DEFAULTS[name]))

    def with_zero(self, **changes: Any) -> Setting:
        """The same with other keys in the JSON's `zero_optimization`."""
        return replace(self, zero={**self.zero, "zero_optimization": {**self.zero["zero_optimization"], **changes}})


@dataclass(frozen=True)
class Item:
    """One line of the plan: what, bytes a rank on the device, bytes a rank on the host, bytes a rank on NVMe."""

    name: str
    device: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    exact: bool = False


def part(count: int, world: int) -> int:
    """Numbers of a parameter that a rank holds: the last part is padded."""
    return -(-count // world)


def group_of(weight: Weight) -> str:
    """The optimizer group of a weight that trains."""
    return "vocabulary" if weight.name in TABLES else "matrix" if len(weight.shape) > 1 else "vector"


def trained_part(weights: Sequence[Weight], setting: Setting) -> int:
    """Trained numbers that one rank owns, padding included."""
    return sum(_trained_groups(weights, setting, padded=True).values())


def _trained_groups(weights: Sequence[Weight], setting: Setting, *, padded: bool) -> dict[str, int]:
    """Optimizer group -> trained numbers of the first rank, which has the most of them."""
    own: dict[str, int] = {}
    for weight in weights:
        if weight.trains:
            group, count = group_of(weight), weight.count
            own[group] = own.get(group, 0) + (part(count, setting.world) if setting.stage == 3 else count)
    if setting.stage == 3:
        return own
    align = 2 * setting.world
    parts = {group: -(-count // align) * align // setting.world for group, count in own.items()}
    return parts if padded else {group: min(parts[group], count) for group, count in own.items()}


def _is_split(weight: Weight, setting: Setting) -> bool:
    return setting.split_tables and weight.name in (EMBEDDING, HEAD)


def states(weights: Sequence[Weight], setting: Setting) -> list[Item]:
    """Weights, gradients, fp32 copies, moments and anchor of the rank that has the most of them: exact."""
    tables = [weight for weight in weights if _is_split(weight, setting)]
    rest = [weight for weight in weights if not _is_split(weight, setting)]
    rows = sum(part(weight.shape[0], setting.world) * weight.shape[1] for weight in tables)
    return [*_zero_states(rest, setting), *_table_states(rows, setting), *_anchor_states(rest, rows, setting)]


def _zero_states(weights: Sequence[Weight], setting: Setting) -> list[Item]:
    b, world = setting.number, setting.world
    own = trained_part(weights, setting)
    if setting.stage == 3:
        held = sum(part(weight.count, world) for weight in weights) * b
        limit = setting.option("stage3_param_persistence_threshold")
        whole = 0 if world == 1 else sum(weight.count for weight in weights if weight.count <= limit) * b
    else:
        held, whole = sum(weight.count for weight in weights) * b, 0
    hpz = setting.option("zero_hpz_partition_size")
    items = [_placed("weights", held, offload_device(setting.zero, "offload_param") if setting.stage == 3 else "none")]
    if hpz > 1 and setting.stage == 3:
        second = sum(part(weight.count, int(hpz)) for weight in weights) * b
        items.append(Item("weights once more a host (hpz)", device=second, exact=True))
    moments = offload_device(setting.zero, "offload_optimizer")
    items.append(_placed("gradients, fp32", own * 4, "none" if moments == "none" else "cpu"))
    items.append(_placed("fp32 copy of what trains", own * 4, moments))  # in fp32 too, in DeepSpeed 0.19.8
    items.append(_placed("Adam's moments", own * 8, moments))
    if whole:
        items.append(Item("small weights kept whole", device=whole, exact=True))
    return items


def _table_states(rows: int, setting: Setting) -> list[Item]:
    """Of the vocabulary's rows that a rank holds, `rows` numbers; never offloaded."""
    if not rows:
        return []
    copy = 4 if setting.number < 4 else 0
    return [
        Item("vocabulary's own rows", device=rows * setting.number, exact=True),
        Item("their gradients, fp32", device=rows * 4, exact=True),
        Item("their fp32 copy and moments", device=rows * (copy + 8), exact=True),
    ]


def _anchor_states(weights: Sequence[Weight], rows: int, setting: Setting) -> list[Item]:
    """Where training started, of what trains and is anchored; padding is not copied."""
    own = _trained_groups(weights, setting, padded=False)
    held = sum(count for group, count in own.items() if group in setting.anchored) * setting.number
    beside = rows * setting.number if "vocabulary" in setting.anchored else 0
    place = offload_device(setting.zero, "offload_optimizer")
    items = [_placed("anchor: the start of what trains", held, place)] if held else []
    return [*items, Item("anchor: the start of the rows", device=beside, exact=True)] if beside else items


def _placed(name: str, size: float, device: str) -> Item:
    where = {"none": "device", "cpu": "host", "nvme": "disk"}[device]
    return Item(name, exact=True, **{where: float(size)})


def working(weights: Sequence[Weight], shape: ModelShape, setting: Setting) -> list[Item]:
    """What a step holds besides the states: estimates."""
    b = setting.number
    tables = [w for w in weights if w.name in (EMBEDDING, HEAD)]
    body = [w for w in weights if w not in tables]
    items = []
    elsewhere = setting.world > 1 or offload_device(setting.zero, "offload_param") != "none"
    if setting.stage == 3 and elsewhere:
        layer = max(sum(w.count for w in body if w.layer == i) for i in range(shape.layers))
        gathered = body if setting.split_tables else weights
        total = sum(w.count for w in gathered)
        ahead = max(setting.option("stage3_max_reuse_distance"), layer) + setting.option("stage3_prefetch_bucket_size")
        live = min(total, max(setting.option("stage3_max_live_parameters"), layer), ahead)
        table = 0 if setting.split_tables else max(w.count for w in tables)
        items.append(Item("weights gathered at a time", device=max(live, table) * b))
    items += _gradients_under_way(weights, setting)
    items.append(Item("activations", device=activations(shape, setting)))
    head = next((w for w in tables if w.name == HEAD), tables[0])
    over = setting.world if setting.split_tables else 1  # then positions of all ranks meet a part of the rows
    positions = min(setting.chunk, setting.tokens * over)
    logits = positions * head.count / shape.width / over
    gradient = head.count * 4 / over if head.trains else 0
    items.append(Item(f"logits, {positions:,} at a time", device=logits * (4 + b)))
    items.append(Item("head's gradient, fp32", device=gradient))
    return items


def _gradients_under_way(weights: Sequence[Weight], setting: Setting) -> list[Item]:
    """What summing gradients over ranks takes beside them (stage3.py, stage_1_and_2.py of DeepSpeed 0.19.8)."""
    b, bucket = setting.number, setting.option("reduce_bucket_size")
    trained = [w.count for w in weights if w.trains and not (setting.split_tables and w.name in TABLES)]
    largest = max(trained, default=0)
    alone = largest * b
    if setting.stage == 3:
        buckets = 2 * bucket * setting.communicated  # the bucket, and the same laid out rank by rank
        if largest > bucket and setting.communicated != b:
            alone += largest * setting.communicated  # too large for a bucket: converted by itself
    else:
        buckets = (
            2 * bucket * b + min(setting.option("allgather_bucket_size"), sum(w.count for w in weights if w.trains)) * b
        )
    return [
        Item("communication buckets", device=buckets),
        Item("largest gradient before it is shared", device=alone if setting.stage > 1 else 0),
    ]


def activations(shape: ModelShape, setting: Setting) -> float:
    """Bytes kept for the backward pass: all of a layer, or its input where it is recomputed, and one layer at work."""
    q, kv = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    # Norms work in fp32 (two copies of 4 bytes each), then: normed inputs, q k v with and without rotation,
    # attention's output, gate, up, silu and product, and LoRA's inputs (counted as one more width).
    layer = setting.tokens * (
        16 * shape.width + setting.number * (5 * shape.width + 3 * q + 4 * kv + 4 * shape.feed_forward)
    )
    kept = shape.layers * (1 - setting.recomputed) * layer
    inputs = shape.layers * setting.recomputed * setting.tokens * shape.width * setting.number
    return kept + inputs + (layer if setting.recomputed else 0)


def host_items(weights: Sequence[Weight], setting: Setting) -> list[Item]:
    """Memory of the host beside what was offloaded, a rank on average: rank 0 gathers the export in fp32."""
    trained = sum(weight.count for weight in weights if weight.trains)
    per_host = setting.world / setting.hosts
    found = [
        Item("process", host=PROCESS),
        Item("export on rank 0, fp32", host=trained * 4 / per_host),
    ]
    buffers = nvme_buffers(weights, setting)
    return [*found, Item("buffers between host and NVMe", host=buffers)] if buffers else found


def nvme_buffers(weights: Sequence[Weight], setting: Setting) -> float:
    """Bytes of locked host memory through which a rank's weights and optimizer states go to NVMe and back."""
    zero = setting.zero["zero_optimization"]
    total = 0.0
    if offload_device(setting.zero, "offload_param") == "nvme":
        section = {"buffer_count": 5, "buffer_size": 1e8} | zero["offload_param"]
        total += float(section["buffer_count"]) * float(section["buffer_size"]) * setting.number
    if offload_device(setting.zero, "offload_optimizer") == "nvme":
        groups = _trained_groups(weights, setting, padded=True).values()
        largest = min(max(groups, default=0), setting.option("sub_group_size"))
        total += float(zero["offload_optimizer"].get("buffer_count", 4)) * largest * 4
    return total


def disk_bytes(weights: Sequence[Weight], setting: Setting, config: StageConfig) -> float:
    """Checkpoints that are kept, one more while it is written, and what the stage hands over."""
    trained = sum(weight.count for weight in weights if weight.trains)
    saved = trained * (12 + setting.number)
    return saved * (config.checkpoint.keep + 1) + trained * 4


def setting_of(config: StageConfig, zero: dict[str, Any], *, world: int, hosts: int, gpu: bool, layers: int) -> Setting:
    """The setting of a stage on so many ranks."""
    model = config.model
    bf16 = config.precision == "bf16" or (config.precision == "auto" and gpu)
    parallel = model.vocabulary_parallel
    whole = model.train == "full" or model.vocabulary == "full"
    offloads = offload_device(zero, "offload_optimizer") != "none"
    split = parallel is True or (parallel == "auto" and whole and not offloads)
    chunk = (max(2048, 256 * world) if split else 2048) if gpu else 128  # the engine's own
    return Setting(
        world=world,
        hosts=hosts,
        number=2 if bf16 else 4,
        zero=zero,
        tokens=config.data.pack.length * config.batch.micro_rows,
        recomputed=recomputed_share(model.activation_checkpointing, layers),
        chunk=model.head_chunk or chunk,
        split_tables=split,
        anchored=_anchored(config.anchor),
    )


def _anchored(anchor: AnchorConfig | None) -> frozenset[str]:
    groups = ("matrix", "vector", "vocabulary")
    return frozenset(group for group in groups if anchor is not None and anchor.weight_of(group) > 0)
