"""The configuration tree as JSON and back, with every field checked."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from cmb_jax.config import Config


def config_to_json(config: Config) -> str:
    """Pretty JSON with one key a field."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def config_from_json(text: str) -> Config:
    """Inverse of `config_to_json`.

    Raises:
      ValueError: unknown or missing fields, or values that the tree refuses.
    """
    return _build(Config, json.loads(text), "config")


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    missing = sorted(set(fields) - set(values))
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
