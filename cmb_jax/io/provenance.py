"""Provenance of a result as JSON-LD in the terms of BIDS-Prov (BIDS extension proposal 28)."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

CONTEXT = "https://purl.org/nidash/bidsprov/context.json"
PROV_VERSION = "0.0.1"
_LIBRARIES = ("jax", "flax", "numpy", "scipy", "nibabel")


def provenance_jsonld(
    *,
    program_version: str,
    command: str,
    parameters: Mapping[str, Any],
    inputs: Sequence[tuple[str, str, str]],
    weights: tuple[str, str],
    outputs: Sequence[str],
) -> str:
    """One activity, the software behind it, what it used and what it made. No times and no paths.

    Args:
        program_version: of this package.
        command: the command without its arguments, such as `cmb-jax predict`.
        parameters: settings of the run.
        inputs: (id, label, sha256) of each file that was read.
        weights: (name, sha256) of the detector.
        outputs: ids of the files that were written.
    """
    name, digest = weights
    used = [*(each for each, _, _ in inputs), f"urn:sha256:{digest}"]
    files = [(*each,) for each in inputs] + [(f"urn:sha256:{digest}", name, digest)]
    software = [("cmb-jax", program_version), ("Python", platform.python_version())]
    software += [(each, version(each)) for each in _LIBRARIES]
    return (
        json.dumps(
            {
                "@context": CONTEXT,
                "BIDSProvVersion": PROV_VERSION,
                "Records": {
                    "Software": [
                        {"Id": f"#{each}", "Label": each, "Version": number} for each, number in software
                    ],
                    "Activities": [
                        {
                            "Id": "#detection",
                            "Label": "Detection of cerebral microbleeds",
                            "Command": command,
                            "Parameters": dict(parameters),
                            "AssociatedWith": [f"#{each}" for each, _ in software],
                            "Used": used,
                        }
                    ],
                    "Entities": [
                        *(
                            {"Id": each, "Label": label, "Digest": {"SHA256": sha256}}
                            for each, label, sha256 in files
                        ),
                        *(
                            {"Id": each, "Label": each.rpartition("/")[2], "GeneratedBy": "#detection"}
                            for each in outputs
                        ),
                    ],
                },
            },
            indent=2,
        )
        + "\n"
    )
