"""How long a program takes on a device, by the roofline of each of its instructions."""

from __future__ import annotations

import dataclasses

from cmb_jax.hardware import Hardware
from cmb_jax.planning.costs import Collective, Costs

BANDWIDTH_SHARE = 0.8
"""Of the stated memory and link bandwidth."""
LATENCY_S = 5e-6
"""Of one collective, besides its bytes; assumed."""

# Share of the whole array that passes each device's link, in a ring of n devices, over what it held before.
_RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds of one call."""

    computing: float  # on instructions that the peak of operations bounds
    moving: float  # on instructions that the memory bounds
    messages: float  # none of which is hidden behind the rest

    @property
    def total(self) -> float:
        """Of all three, one after the other."""
        return self.computing + self.moving + self.messages


def predict(costs: Costs, hardware: Hardware, precision: str) -> Seconds:
    """Each instruction takes max(operations / (share of peak), bytes / (share of bandwidth)).

    Args:
        costs: of one device.
        hardware: its peaks.
        precision: of training, see `config.TrainConfig`.
    """
    peak = hardware.flops_share * hardware.flops(precision)
    bandwidth = BANDWIDTH_SHARE * hardware.memory_bandwidth
    computing = moving = 0.0
    for operation in costs.operations:
        by_flops, by_bytes = operation.flops / peak, operation.bytes / bandwidth
        if by_flops > by_bytes:
            computing += operation.times * by_flops
        else:
            moving += operation.times * by_bytes
    messages = sum(c.times * message_seconds(c, hardware) for c in costs.collectives)
    return Seconds(computing=computing, moving=moving, messages=messages)


def message_seconds(collective: Collective, hardware: Hardware) -> float:
    """Of one collective: a ring over the links, or over the network if the group is larger than a domain."""
    inside = collective.devices <= hardware.domain
    bandwidth = BANDWIDTH_SHARE * (hardware.link_bandwidth if inside else hardware.network_bandwidth)
    return LATENCY_S + _RING[collective.kind](collective.devices) * collective.bytes / bandwidth
