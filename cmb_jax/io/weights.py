"""Network weights in files: safetensors, which holds arrays and text and can run nothing when it is read.

A pure dict is what `flax.nnx.to_pure_dict` gives: nested dicts with string or integer keys and arrays as
leaves. In the file every array has its path as its name, joined by dots (`encoder.0.kernel`).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.outside import check_is_file, reading

PureDict = dict[Any, Any]

INPUT_VERSION = 2
"""Version of what `data.prepare` gives the network; in weights and in the names of caches. Raise it when
`prepare` gives other numbers. 1: phase interpolated as an angle, noise at full strength. 2: as cosine and
sine, weighted by `phase_trust`; nothing depends on the field of view."""

OLDEST_INPUT_VERSION = 2
"""Weights for an older input are refused."""

_MAX_BYTES = 2**33
_KINDS = "fiub"  # no narrower floats than float16 and bfloat16: NumPy cannot compute with them
_INPUT_VERSION_KEY = "input_version"


def named_leaves(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf of a nested dict.

    Raises ValueError when a key holds a dot, because the file could then not be read back.
    """
    for key, value in state.items():
        if "." in str(key):
            raise ValueError(f"parameter key {key!r} holds a dot")
        if isinstance(value, Mapping):
            yield from named_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unflatten_state(flat: Mapping[str, np.ndarray]) -> PureDict:
    """Flat dict of dotted names -> nested dict; parts that are whole numbers become integer keys."""
    state: PureDict = {}
    for name, value in flat.items():
        *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = state
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return state


def save_weights(
    path: str | Path,
    state: Mapping[Any, Any],
    metadata: Mapping[str, str],
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write a pure dict of arrays to `path`, atomically (a reader sees the old file or the new one).

    Args:
        path: file to write or replace; folders that are missing are made.
        state: pure dict; floating arrays are stored as `dtype`, integers and booleans as they are.
        metadata: text that travels with the weights (configuration, versions).
        dtype: float16 halves the file; its relative rounding error is below 5e-4.

    Raises:
        UserError: the file cannot be written.
        ValueError: a value is not finite, or too large for float16.
    """
    path = Path(path)
    flat = {}
    for name, leaf in sorted(named_leaves(state), key=lambda item: item[0]):
        value = np.asarray(leaf)
        if np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16":
            with np.errstate(over="ignore"):  # the line below names the parameter
                value = value.astype(dtype)
            if not np.isfinite(value).all():
                raise ValueError(f"parameter {name} is not finite as {dtype}")
        flat[name] = np.asarray(value, order="C")
    atomic_write_bytes(path, _file_of(flat, metadata), overwrite=True)


def relabeled_weights(source: Path, metadata: Mapping[str, str]) -> bytes:
    """A file with the arrays of `source` as they are stored, and other metadata.

    Raises:
        UserError: `source` cannot be read (see `load_weights`).
    """
    stored, _ = _read(source)
    return _file_of(stored, metadata)


def load_weights(
    path: str | Path, expected: Mapping[Any, Any] | None = None
) -> tuple[PureDict, dict[str, str]]:
    """Read a file of `save_weights`: (pure dict of NumPy arrays, metadata).

    Args:
        path: a safetensors file.
        expected: pure dict of the model that the weights are for (arrays or shapes, e.g. of
            `nnx.eval_shape`); names and shapes must then agree exactly.

    Floating arrays come back as float32 whatever they were stored as.

    Raises:
        UserError: the file is missing, is not safetensors, is truncated, or does not fit `expected`: the
            first parameter (by name) that differs is named.
    """
    stored, metadata = _read(Path(path))
    flat = {name: _as_float32(value) for name, value in stored.items()}
    if expected is not None:
        _check_fit(Path(path), flat, expected)
    return unflatten_state(flat), metadata


def with_input_version(metadata: Mapping[str, str], version: int) -> dict[str, str]:
    """Metadata of a detector's weights that say which input they were trained on."""
    return {**metadata, _INPUT_VERSION_KEY: str(version)}


def input_version_of(path: Path, metadata: Mapping[str, str]) -> int:
    """The input that a detector's weights were trained on; those that name none are of version 1.

    Raises:
        UserError: an input that is too old or unknown; says which version it is.
    """
    version = metadata.get(_INPUT_VERSION_KEY, "1")
    if version not in map(str, range(OLDEST_INPUT_VERSION, INPUT_VERSION + 1)):
        raise UserError(
            f"{path}: these weights are for input version {version}, but this cmb-jax makes input version "
            f"{INPUT_VERSION}; use its bundled weights, train anew, or use the cmb-jax that wrote them"
        )
    return int(version)


def _file_of(arrays: dict[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The same bytes each time: the library writes metadata in any order, so they are put in here."""
    # the file begins with the header's length in 8 bytes, then comes the header, a JSON object of all arrays
    blob = save(arrays)
    end = 8 + int.from_bytes(blob[:8], "little")
    entry = json.dumps({"__metadata__": dict(metadata)}, sort_keys=True).encode()
    header = entry[:-1] + (b"," if arrays else b"") + blob[9:end].rstrip()
    header += b" " * (-len(header) % 8)  # arrays begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + blob[end:]


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name as they are stored, and metadata."""
    remedy = (
        "not a readable safetensors file (damaged, truncated or of another kind): fetch it again, or "
        "give other weights"
    )
    with reading(path, remedy, missing="no such weights file; check the path"):
        # weights come from anywhere: their size and types are checked before anything is computed with them
        if check_is_file(path, remedy) > _MAX_BYTES:
            raise ValueError("larger than weights ever are")
        with safe_open(path, framework="numpy") as file:
            metadata = {str(name): text for name, text in (file.metadata() or {}).items()}
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
        for name, array in arrays.items():
            if array.dtype.kind not in _KINDS and array.dtype.name != "bfloat16":
                raise ValueError(f"{name} is {array.dtype}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")
        return arrays, metadata


def _as_float32(value: np.ndarray) -> np.ndarray:
    floating = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if floating else value


def _check_fit(path: Path, flat: Mapping[str, np.ndarray], expected: Mapping[Any, Any]) -> None:
    wanted = {name: tuple(leaf.shape) for name, leaf in named_leaves(expected)}
    for name in sorted(wanted.keys() | flat.keys()):
        if name not in flat:
            problem = f"lack {name} {wanted[name]}"
        elif name not in wanted:
            problem = f"hold {name} {flat[name].shape}, which the model does not have"
        elif flat[name].shape != wanted[name]:
            problem = f"hold {name} as {flat[name].shape}, but the model has {wanted[name]}"
        else:
            continue
        raise UserError(
            f"{path}: weights of another configuration: they {problem}; "
            "use the configuration that they were trained with, or other weights"
        )
