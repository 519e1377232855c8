"""Write the tables of docs/detections.md from the record of a detection: python tools/write_columns.py."""

from __future__ import annotations

import re
from pathlib import Path

from cmb_jax.core.detection import columns_table, reasons_list

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detections.md"


def main() -> None:
    """Replace what stands between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, table in (("columns", columns_table()), ("reasons", reasons_list())):
        between = re.compile(f"(<!-- {mark} -->\n).*?(\n?<!-- end -->)", re.DOTALL)
        text = between.sub(lambda found, table=table: f"{found[1]}{table}\n<!-- end -->", text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
