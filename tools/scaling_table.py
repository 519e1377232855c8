"""Predicted weak and strong scaling, from plans of 8 to 256 devices: tools/scaling_table.py PLANS [PAGE].

Each plan is made by `cmb-jax plan --json` in a process of its own and kept in the folder PLANS, so that a
stopped run goes on. Then the part of PAGE (docs/scaling.md) between `<!-- scaling -->` and
`<!-- /scaling -->` is written anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- scaling -->", "<!-- /scaling -->"
DEVICES = (8, 16, 32, 64, 128, 256)
HARDWARE = ("v5e", "h100")
PATCHES_EACH = 4  # weak scaling, of every device
PATCHES_IN_ALL = 256  # strong scaling
CONFIG = "configs/base.py"


def plan(folder: Path, hardware: str, devices: int, patches: int) -> dict[str, Any]:
    """One plan, made unless it is there; `patches` of each device."""
    path = folder / f"{hardware}-{devices}-{patches}.json"
    if not path.exists():
        options = ["--mesh", f"{devices}x1", "--hardware", hardware, "--config", str(ROOT / CONFIG)]
        options += ["--precision", "bfloat16", "--batch-size", str(patches), "--json", str(path.absolute())]
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "cmb_jax.cli", "plan", *options], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def message_share(record: dict[str, Any]) -> float:
    """Share of the predicted step that messages take."""
    return record["predicted"]["messages"] / record["predicted"]["seconds"]


def limit(record: dict[str, Any]) -> str:
    """What takes most of the predicted step."""
    parts = ("computing", "moving", "messages")
    return {"computing": "operations", "moving": "memory", "messages": "messages"}[
        max(parts, key=lambda part: record["predicted"][part])
    ]


def table(weak: list[dict[str, Any]], strong: list[dict[str, Any]]) -> str:
    """Rows of one kind of hardware, plans in the order of `DEVICES`."""
    lines = [
        "| devices | weak: ms per step | efficiency | messages | MB per device | strong: ms per step "
        "| speedup from 8 | messages | limited by |",
        "|" + "---|" * 9,
    ]
    for devices, fixed, shared in zip(DEVICES, weak, strong, strict=False):
        seconds = shared["predicted"]["seconds"]
        speedup = strong[0]["predicted"]["seconds"] / seconds
        memory = sum(fixed["device"]["memory"].values()) / 1e6
        lines.append(
            f"| {devices} | {1e3 * fixed['predicted']['seconds']:.2f} "
            f"| {fixed['predicted']['weak_scaling']:.0%} | {message_share(fixed):.0%} | {memory:.0f} "
            f"| {1e3 * seconds:.2f} | {speedup:.1f} of {devices / DEVICES[0]:.0f} "
            f"| {message_share(shared):.0%} | {limit(shared)} |"
        )
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1])
    page = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "scaling.md"
    folder.mkdir(parents=True, exist_ok=True)
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page}: has no part between {BEGIN} and {END}")
    parts = [BEGIN]
    for hardware in HARDWARE:
        weak = [plan(folder, hardware, devices, PATCHES_EACH) for devices in DEVICES]
        strong = [plan(folder, hardware, devices, PATCHES_IN_ALL // devices) for devices in DEVICES]
        parts += [f"{weak[0]['hardware']['name']}:", table(weak, strong)]
    page.write_text(before + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
