"""Filter files as fMRIPrep has them: which images may be taken for which part, by entities.

{"swi": {"acquisition": "axial"}, "mag": {"reconstruction": null}, "phase": {"run": [1, 2], "suffix": "GRE"}}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cmb_jax.datasets.bids.names import BidsName, plain_index
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object

PARTS = ("swi", "mag", "phase")
"""Queries that are used; those of other programs may stand in the same file."""

_KEYS = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
}
"""Entities by their long names; others are called the same in names and filters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsFilter:
    """What each part must have; a part without a query may have anything."""

    queries: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def keeps(self, part: str, name: BidsName, datatype: str) -> bool:
        """Whether an image may be taken for that part."""
        said = {**dict(name.entities), "suffix": name.suffix, "datatype": datatype}
        return all(
            _fits(said.get(_KEYS.get(key, key)), wanted) for key, wanted in self.queries.get(part, {}).items()
        )


def read_filter(path: Path) -> BidsFilter:
    """The filter of a JSON file.

    Raises:
        UserError: no such file, no JSON, or not of this form.
    """
    form = 'give such as {"swi": {"acquisition": "axial"}}'
    content = read_json_object(path, form)
    if not all(isinstance(query, dict) for query in content.values()):
        raise UserError(f"{path}: is no filter; {form}")
    queries = {part: content[part] for part in PARTS if part in content}
    if not queries:
        raise UserError(f"{path}: has none of the queries {', '.join(PARTS)}; {form}")
    for part, query in queries.items():
        for key, wanted in query.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not all(value is None or type(value) in (str, int) for value in values):
                raise UserError(f"{path}: {part}: {key}: give a label, a list of labels, null (none) or *")
    return BidsFilter(queries=queries)


def _fits(label: str | None, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_fits(label, one) for one in wanted)
    if wanted is None or label is None:
        return label is wanted is None
    return wanted == "*" or plain_index(label) == plain_index(str(wanted))
