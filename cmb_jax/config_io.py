"""The configuration tree as JSON and back, with every field checked."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from cmb_jax.config import HOW_IT_IS_COMPUTED, NEWER_THAN_SOME_WEIGHTS, Config, ModelConfig


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
    return _build(Config, _with_precision(json.loads(text)), "config")


def _with_precision(values: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions had `model.compute_dtype` for both; without it they computed in float32."""
    model, train, inference = (dict(values.get(part, {})) for part in ("model", "train", "inference"))
    before = model.pop("compute_dtype", "float32")
    train.setdefault("precision", before)
    inference.setdefault("precision", before)
    parts = {"model": model, "train": train, "inference": inference}
    return values | {name: part for name, part in parts.items() if part}


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    optional = HOW_IT_IS_COMPUTED | NEWER_THAN_SOME_WEIGHTS
    missing = sorted(set(fields) - set(values) - optional) if kind is ModelConfig else []
    if unknown or missing:
        raise ValueError(f"{where} has unknown fields {unknown} and lacks {missing}")
    types = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            arguments[name] = _build(types[name], value, f"{where}.{name}")
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)
