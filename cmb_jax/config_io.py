"""The configuration tree as JSON and back, with every field checked."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from cmb_jax.config import HOW_IT_IS_COMPUTED, NEWER_THAN_SOME_WEIGHTS, Config, ModelConfig
from cmb_jax.io.outside import parse_json, read_text, reading, shortened

_LONGEST_LIST = 1000


def config_to_json(config: Config) -> str:
    """Pretty JSON with one key a field."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def without_paths(config: Config) -> Config:
    """The configuration without names of files of this machine, as it may go out with the weights."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, index=None, split_file=None),
        phantom=dataclasses.replace(config.phantom, cache_dir=None),
        train=dataclasses.replace(config.train, init_from=None, network_of_start=False),
    )


def config_from_json(text: str) -> Config:
    """Inverse of `config_to_json`.

    A setting that is newer than the text takes its default, so a new setting's default must be what the
    program did before. The network is exempt: the settings that its weights depend on must be there, but for
    `NEWER_THAN_SOME_WEIGHTS`.

    Raises:
      ValueError: unknown fields, a network without all its settings, or values that the tree refuses.
    """
    return _build(Config, _with_precision(parse_json(text)), "config")


def read_config(path: Path, todo: str) -> Config:
    """The configuration in a file of `config_to_json`.

    Raises:
      UserError: missing, damaged, or of another version.
    """
    with reading(path, todo):
        return config_from_json(read_text(path, todo))


def _with_precision(values: Any) -> dict[str, Any]:
    """Earlier versions had `model.compute_dtype` for both; without it they computed in float32."""
    values = _mapping(values, "config")
    model, train, inference = (
        dict(_mapping(values.get(part, {}), f"config.{part}")) for part in ("model", "train", "inference")
    )
    before = model.pop("compute_dtype", "float32")
    train.setdefault("precision", before)
    inference.setdefault("precision", before)
    parts = {"model": model, "train": train, "inference": inference}
    return values | {name: part for name, part in parts.items() if part}


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is no JSON object")
    return values


def _build(kind: type, values: Any, where: str) -> Any:
    values = _mapping(values, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    optional = HOW_IT_IS_COMPUTED | NEWER_THAN_SOME_WEIGHTS
    missing = sorted(set(fields) - set(values) - optional) if kind is ModelConfig else []
    if unknown or missing:
        raise ValueError(f"{where} has unknown fields {unknown} and lacks {missing}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, f"{where}.{name}")
        else:
            if not _fits(value, hints[name]):
                raise ValueError(f"{where}.{name} is {shortened(ascii(value), 40)}, which it must not be")
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; numbers are finite, lists no longer than any need be."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > _LONGEST_LIST:
            return False
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**53
    return type(value) is kind
