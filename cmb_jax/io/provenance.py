"""What results say of the files they were made from: names that identify nobody, and provenance as JSON-LD.

People name files after their patients, so a name is shown only if it is a pseudonym by its form.
"""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A BIDS label is a pseudonym by that standard: sub-01_ses-2_part-phase_T2starw.
_BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*(_[A-Za-z0-9]+)?", re.ASCII)
_KINDS = frozenset(
    (
        *("swi", "gre", "t2s", "t2star", "t2starw", "mag", "magnitude", "phase", "pha", "echo"),
        *("part", "real", "imag", "brain", "mask", "brainmask", "image", "scan", "native"),
        *("labels", "lesions", "cmb", "truth", "table"),
    )
)
_NUMBER = re.compile(r"[0-9]{1,2}$", re.ASCII)  # of an echo, a run, a repetition
_LIBRARIES = ("jax", "flax", "numpy", "scipy", "nibabel")


def stem(name: str) -> str:
    """A file's name without .nii, .nii.gz or another last suffix."""
    for suffix in (".nii.gz", ".nii"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name


def is_bids_name(name: str) -> bool:
    """Whether a file's or folder's stem is made of BIDS entities, from sub- on."""
    return _BIDS.fullmatch(name) is not None


def is_pseudonym(name: str) -> bool:
    """Whether a name says nothing of a person: BIDS labels, or only words for kinds of images.

    `sub-01_ses-2_swi` and `mag_echo1` are; `DOE_JANE_swi` and `20240131` are not.
    """
    if is_bids_name(name):
        return True
    words = re.split(r"[-_. ]+", name.lower())
    return all(word and (word in _KINDS or _NUMBER.sub("", word) in _KINDS | {""}) for word in words)


def shown_name(path: Path, sha256: str, *, keep_identifiers: bool = False) -> str:
    """The name that outputs give a file: its own if it says nothing of a person, else one of its hash.

    Args:
        path: of the file; folders are never shown.
        sha256: of its bytes, hex digits.
        keep_identifiers: show the file's own name, whatever it says.
    """
    if keep_identifiers or is_pseudonym(stem(path.name)):
        return path.name
    return f"file-{sha256[:8]}{path.name[len(stem(path.name)) :].lower()}"


def pseudonym(name: str, sha256: str) -> str:
    """What files for readers call a scan: the BIDS name of its image, else a name of the image's hash."""
    return stem(name) if is_bids_name(stem(name)) else f"scan-{sha256[:8]}"


def provenance_jsonld(
    *,
    program_version: str,
    command: str,
    parameters: Mapping[str, Any],
    inputs: Sequence[tuple[str, str, str]],
    weights: tuple[str, str],
    outputs: Sequence[str],
) -> str:
    """Provenance of a result in the terms of BIDS-Prov (BIDS extension proposal 28), as JSON-LD.

    One activity, the software behind it, what it used and what it made; no times and no paths.

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
                "@context": "https://purl.org/nidash/bidsprov/context.json",
                "BIDSProvVersion": "0.0.1",
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
