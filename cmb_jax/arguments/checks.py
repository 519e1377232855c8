"""What can be said about arguments before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmb_jax.commands.common import check_output, check_threshold, existing_file
from cmb_jax.errors import UserError

_IMAGES = {
    "swi": "SWI",
    "phase": "phase",
    "magnitude": "magnitude",
    "lesions": "table of lesions",
    "brain_mask": "brain mask",
    "region_labels": "label table",
    "baseline_image": "baseline image",
    "followup_image": "follow-up image",
}
_FOLDERS = {
    "pred": "predictions",
    "truth": "truth",
    "followup": "follow-up's result",
    "result": "result",
    "folder": "DICOM folder",
    "dicom": "DICOM folder",
    "data": "BIDS data set",
}
_WRITTEN = ("out", "report", "labels", "json")
_BUNDLED = Path(__file__).resolve().parent.parent / "weights"


def check(given: Mapping[str, Any]) -> None:
    """Refuse what cannot be right, by the names that options have in all commands.

    Raises:
      UserError: no such file, folder or weights; output that exists; a threshold that no score has.
    """
    for name, role in _IMAGES.items():
        if isinstance(given.get(name), Path):
            existing_file(given[name], role)
    for name, role in _FOLDERS.items():
        value = given.get(name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not path.exists():
                raise UserError(f"{path}: no such folder; check the path of the {role}")
    check_threshold(given.get("threshold"))
    if isinstance(given.get("weights"), str):
        check_weights(given["weights"])
    # `bids` adds to its output; --verify reads it
    if "level" not in given and not given.get("verify"):
        for name in _WRITTEN:
            if isinstance(given.get(name), Path):
                check_output(given[name], bool(given.get("overwrite")))


def check_weights(weights: str) -> None:
    """Refuse a name that no bundled weights have, as `inference.bundle.load_bundle` does later.

    Raises:
      UserError: no such name.
    """
    if Path(weights).exists():
        return
    known = sorted(path.stem for path in _BUNDLED.glob("*.safetensors") if path.stem != "region")
    for part in (part.strip() for part in weights.split(",")):
        if not Path(part).exists() and Path(part).name == part and Path(part).suffix == "":
            if part not in known:
                names = ", ".join(known)
                raise UserError(f"{part}: no such weights; give a file or one of the bundled names: {names}")
        elif not Path(part).exists():
            raise UserError(f"{part}: no such file; check the path of the weights")
