"""Differences between two acquisitions and two predictions that make their counts differ."""

from __future__ import annotations

import numpy as np

from cmb_jax.followup.time_point import TimePoint

_ECHO_SHARE = 0.1  # echo times within this share are alike
_FIELD_T = 0.2  # 2.89 T is called 3 T
_VOXEL_SHARE = 0.1
_RULE = "more microbleeds show at longer echo times, higher fields and smaller voxels"


def protocol_warnings(first: TimePoint, second: TimePoint) -> tuple[str, ...]:
    """What differs between two scans, one line each; also what is not known."""
    lines = []
    suffixes = first.record.suffix, second.record.suffix
    if None not in suffixes and suffixes[0] != suffixes[1]:
        lines.append(
            f"The sequences differ ({suffixes[0]} at baseline, {suffixes[1]} at follow-up): SWI shows two to "
            "three times as many microbleeds as T2*-weighted images, so new ones may have been there before."
        )
    differing = []
    for what, unit, alike, values in (
        (
            "field strength",
            "T",
            lambda a, b: abs(a - b) <= _FIELD_T,
            (first.facts.field_strength_t, second.facts.field_strength_t),
        ),
        (
            "echo time",
            "ms",
            lambda a, b: abs(a - b) <= _ECHO_SHARE * max(a, b),
            (first.facts.echo_time_ms, second.facts.echo_time_ms),
        ),
    ):
        if None in values:
            lines.append(f"The {what} is not known for both scans (no JSON file beside an image says it).")
        elif not alike(*values):
            differing.append(f"{what} ({values[0]:g} and {values[1]:g} {unit})")
    sizes = np.sort(first.image.spacing_mm), np.sort(second.image.spacing_mm)
    if (np.abs(sizes[0] - sizes[1]) > _VOXEL_SHARE * np.maximum(*sizes)).any():
        texts = [" x ".join(f"{edge:.2g}" for edge in scan.image.spacing_mm) for scan in (first, second)]
        differing.append(f"voxel size ({texts[0]} and {texts[1]} mm)")
    if differing:
        lines.insert(0, f"The scans differ in {', '.join(differing)}, baseline first; {_RULE}.")
    for role in sorted(first.record.roles ^ second.record.roles):
        scan = first if role in first.record.roles else second
        lines.append(f"Only the {scan.name} was searched with a {role} image.")
    return tuple(lines)


def provenance_warnings(first: TimePoint, second: TimePoint) -> tuple[str, ...]:
    """Whether the two results were made alike, and what speaks against one patient in this order."""
    lines = []
    for what, values in (
        ("versions of cmb-jax", (first.record.version, second.record.version)),
        ("weights", (first.record.weights_sha256[:8], second.record.weights_sha256[:8])),
        ("score thresholds", (first.record.threshold, second.record.threshold)),
    ):
        if values[0] != values[1]:
            lines.append(
                f"The results were made with different {what} ({values[0]} and {values[1]}): a lesion may "
                "be new for that alone. Run predict again on one of them."
            )
    names = first.record.entity("sub"), second.record.entity("sub")
    if None not in names and names[0] != names[1]:
        lines.append(f"The images are named after different subjects (sub-{names[0]} and sub-{names[1]}).")
    dates = first.facts.acquired, second.facts.acquired
    if dates[0] is not None and dates[1] is not None and dates[0] > dates[1]:
        lines.append(
            "By the JSON files the baseline was acquired after the follow-up: are they swapped? New and "
            "resolved would be swapped too."
        )
    for scan in (first, second):
        if not scan.record.regions_trusted:
            lines.append(f"The region map of the {scan.name} is not trusted: its zones are not reported.")
    return tuple(lines)
