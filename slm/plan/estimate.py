"""Does a stage fit the machine, how long does it take, and what would have to change?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slm.config.stage import StageConfig
from slm.config.zero import read_zero_json
from slm.errors import ConfigError, MachineError
from slm.plan.devices import Device
from slm.plan.flops import Cost, cost_of
from slm.plan.memory import Item, Setting, disk_bytes, host_items, setting_of, states, working
from slm.plan.shapes import ModelShape, Weight, stage_weights

USABLE = 0.92
"""Share of a device's memory that a plan may fill: the rest is context, fragments, and what is not counted."""
EFFICIENCY = 0.5
"""Share of a device's peak that the compute estimate assumes."""
LABELS = 0.5
"""Share of supervised tokens that the estimates of time assume."""


@dataclass(frozen=True)
class Machine:
    """Hosts, devices a host, their kind, memory of a host in GB, and network of a host in GB/s."""

    hosts: int
    devices: int
    device: Device
    host_gb: float | None = None
    network_gb_s: float = 50.0

    @property
    def world(self) -> int:
        """Ranks."""
        return self.hosts * self.devices


@dataclass(frozen=True)
class Plan:
    """What was found; bytes and seconds.

    Attributes:
        items: lines of memory, a rank.
        compute_s, traffic_s: seconds of a micro-batch.
        step_s: seconds of an optimizer step.
        steps: optimizer steps, if the configuration says them itself.
        fits: whether the devices (and, if its size is known, the host) hold it.
        advice: what to change, each tried.
    """

    machine: Machine
    setting: Setting
    parameters: int
    trained: int
    items: list[Item]
    disk: float
    compute_s: float
    traffic_s: float
    traffic: float
    step_s: float
    tokens_per_s: float
    steps: int | None
    accumulation: int
    fits: bool
    advice: list[str]

    @property
    def device_bytes(self) -> float:
        """Bytes on a device."""
        return sum(item.device for item in self.items)

    @property
    def host_bytes(self) -> float:
        """Bytes in a host's memory."""
        return sum(item.host for item in self.items) * self.machine.devices


def make_plan(config: StageConfig, machine: Machine) -> Plan:
    """The plan of a stage on a machine.

    Raises:
        CheckpointError: the base has no config.json.
        ConfigError: the DeepSpeed JSON is not good, or the rows of a step can't be shared by the ranks.
    """
    zero = read_zero_json(config.zero)
    shape, weights = stage_weights(config.model)
    share = machine.world * config.batch.micro_rows
    if config.batch.rows % share:
        raise ConfigError(
            f"batch.rows: {config.batch.rows} rows can't be shared by {machine.world} ranks x "
            f"{config.batch.micro_rows} micro_rows",
            mend=f"use a multiple of {share}",
        )
    setting = setting_of(config, zero, world=machine.world, hosts=machine.hosts, gpu=True, layers=shape.layers)
    items = memory_items(weights, shape, setting)
    cost = cost_of(weights, shape, setting.recomputed)
    compute, traffic_s, traffic = times(weights, setting, machine, cost)
    accumulation = config.batch.rows // share
    overlap = bool(zero["zero_optimization"].get("overlap_comm", setting.stage == 3))
    micro = max(compute, traffic_s) if overlap else compute + traffic_s
    step = accumulation * micro
    fits = holds(items, machine)
    return Plan(
        machine=machine,
        setting=setting,
        parameters=sum(weight.count for weight in weights),
        trained=sum(weight.count for weight in weights if weight.trains),
        items=items,
        disk=disk_bytes(weights, setting, config),
        compute_s=compute,
        traffic_s=traffic_s,
        traffic=traffic,
        step_s=step,
        tokens_per_s=config.batch.rows * config.data.pack.length / step,
        steps=config.duration.steps,
        accumulation=accumulation,
        fits=fits,
        advice=_advice(weights, shape, setting, machine, fits, slow=traffic_s > compute),
    )


def memory_items(weights: Sequence[Weight], shape: ModelShape, setting: Setting) -> list[Item]:
    """All lines of memory."""
    return [*states(weights, setting), *working(weights, shape, setting), *host_items(weights, setting)]


def holds(items: Sequence[Item], machine: Machine) -> bool:
    """Whether the machine's memory holds these lines."""
    on_device = sum(item.device for item in items) <= machine.device.memory_gb * 1e9 * USABLE
    on_host = sum(item.host for item in items) * machine.devices
    return on_device and (machine.host_gb is None or on_host <= machine.host_gb * 1e9)


def times(weights: Sequence[Weight], setting: Setting, machine: Machine, cost: Cost) -> tuple[float, float, float]:
    """Seconds of computing and of communicating a micro-batch, and the bytes that a rank receives."""
    tokens = setting.tokens
    operations = cost.hardware(tokens, tokens * LABELS, tokens * tokens / 4)
    compute = operations / (machine.device.peak_tflops * 1e12 * EFFICIENCY)
    if machine.world == 1:
        return compute, 0.0, 0.0
    moved = [w for w in weights if not (setting.split_tables and w.layer is None and len(w.shape) == 2)]
    gradients = sum(w.count for w in moved if w.trains) * setting.number
    gathers = sum(w.count for w in moved) * setting.number * 2 if setting.stage == 3 else 0
    # What a ring brings in from other hosts enters each host once, through its network.
    link = machine.device.link_gb_s if machine.hosts == 1 else min(machine.device.link_gb_s, machine.network_gb_s)
    if machine.hosts > 1 and setting.option("zero_hpz_partition_size") > 1:
        fast, slow = gathers / 2, gathers / 2 + gradients
        seconds = fast / (machine.device.link_gb_s * 1e9) + slow / (link * 1e9)
    else:
        seconds = (gathers + gradients) / (link * 1e9)
    keep = (machine.world - 1) / machine.world
    return compute, seconds * keep, (gathers + gradients) * keep


Change = Callable[[Setting], Setting]


def _changes(setting: Setting) -> list[tuple[str, Change]]:
    """What can be changed, the cheapest in speed first."""
    cpu = {"device": "cpu", "pin_memory": True}
    found: list[tuple[str, Change]] = []
    if setting.recomputed < 1:
        found.append(("model.activation_checkpointing: all", lambda s: replace(s, recomputed=1.0)))
    if setting.option("reduce_bucket_size") > 5e7:
        small = {"reduce_bucket_size": 5e7, "stage3_prefetch_bucket_size": 5e7, "stage3_max_live_parameters": 3e8}
        found.append(
            (
                "smaller buckets in the JSON (reduce and prefetch 5e7, live and reuse 3e8)",
                lambda s: s.with_zero(**small, stage3_max_reuse_distance=3e8),
            )
        )
    if setting.stage < 3:
        found.append(("ZeRO-3: zero=ds_configs/zero/zero3.json", lambda s: s.with_zero(stage=3)))
    if setting.tokens > 1024:
        found.append(
            (
                f"micro-batches of {setting.tokens // 2:,} tokens (batch.micro_rows, data.pack.length)",
                lambda s: replace(s, tokens=s.tokens // 2),
            )
        )
    if "offload_optimizer" not in setting.zero["zero_optimization"]:
        text = "optimizer on the CPU (offload_optimizer)"
        text += ", model.vocabulary_parallel: false" if setting.split_tables else ""  # tables are not offloaded
        found.append((text, lambda s: replace(s.with_zero(offload_optimizer=cpu), split_tables=False)))
    if "offload_param" not in setting.zero["zero_optimization"]:
        found.append(
            (
                "weights on the CPU too: zero=ds_configs/zero/zero3_offload.json",
                lambda s: s.with_zero(offload_param=cpu),
            )
        )
    return found


def _advice(
    weights: Sequence[Weight], shape: ModelShape, setting: Setting, machine: Machine, fits: bool, *, slow: bool
) -> list[str]:
    if not fits:
        return _until_it_fits(weights, shape, setting, machine)
    found = []
    two = setting.with_zero(stage=2)
    if setting.stage == 3 and machine.world > 1 and holds(memory_items(weights, shape, two), machine):
        found.append("ZeRO-2 fits too and gathers nothing: zero=ds_configs/zero/zero2.json")
    elif setting.stage == 3 and machine.hosts > 1 and setting.option("zero_hpz_partition_size") == 1:
        hpz = setting.with_zero(zero_hpz_partition_size=machine.devices)
        if holds(memory_items(weights, shape, hpz), machine):
            found.append(
                f"keep a copy a host: zero_hpz_partition_size: {machine.devices}; half the gathers stay inside"
            )
    if setting.recomputed and holds(memory_items(weights, shape, replace(setting, recomputed=0.0)), machine):
        found.append("fits without recomputation: model.activation_checkpointing: none")
    if slow:
        found.append("waits for communication: more tokens a micro-batch hide it")
    return found


def _until_it_fits(weights: Sequence[Weight], shape: ModelShape, setting: Setting, machine: Machine) -> list[str]:
    """Single changes that suffice; else the shortest run of changes, in order, that does."""
    single = [
        text for text, change in _changes(setting) if holds(memory_items(weights, shape, change(setting)), machine)
    ]
    if single:
        return single
    taken: list[tuple[str, Change]] = []
    start = setting
    for text, change in _changes(setting):
        setting = change(setting)
        taken.append((text, change))
        if holds(memory_items(weights, shape, setting), machine):
            return ["all of these together: " + "; ".join(_needed(weights, shape, start, machine, taken))]
    return ["more devices or larger ones: nothing that can be set makes it fit"]


def _needed(
    weights: Sequence[Weight], shape: ModelShape, setting: Setting, machine: Machine, taken: list[tuple[str, Change]]
) -> list[str]:
    """The changes without those that make no difference to whether it fits."""
    kept = list(taken)
    for entry in taken:
        changed = setting
        for _, change in (other for other in kept if other is not entry):
            changed = change(changed)
        if holds(memory_items(weights, shape, changed), machine):
            kept.remove(entry)
    return [text for text, _ in kept]


def refuse_what_cannot_fit(
    config: StageConfig, *, world: int, hosts: int, device_bytes: float | None, host_bytes: float
) -> None:
    """Before a launch: what is exact in the plan (states of a rank) must fit; estimates refuse nothing.

    Args:
        device_bytes: memory of a rank's GPU; None on a CPU, where everything lies in the host's memory.
        host_bytes: a rank's share of what its host can still give.

    Raises:
        MachineError: the states alone are larger.
        CheckpointError, ConfigError: the base's configuration, or the DeepSpeed JSON, can't be read.
    """
    shape, weights = stage_weights(config.model)
    gpu = device_bytes is not None
    setting = setting_of(config, read_zero_json(config.zero), world=world, hosts=hosts, gpu=gpu, layers=shape.layers)
    items = states(weights, setting)
    on_device, on_host = sum(item.device for item in items), sum(item.host for item in items)

    def require(needed: float, given: float, what: str, whose: str) -> None:
        if needed > given:
            raise MachineError(
                f"a rank's {what} are {needed / 1e9:,.1f} GB, {whose} {given / 1e9:,.1f} GB",
                where=f"{config.model.base} with {config.zero} on {world} ranks",
                mend="slm plan CONFIG --gpus … says what to change",
            )

    share = "its share of the host's free memory is"
    if device_bytes is None:
        require(on_device + on_host, host_bytes, "weights and optimizer states", share)
    else:
        require(on_device, device_bytes, "weights and optimizer states", "it has")
        require(on_host, host_bytes, "offloaded weights and optimizer states", share)
