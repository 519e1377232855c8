"""All trials of docs/reliability.md, and its tables.

python tools/reliability.py --out FOLDER [--short] [--only files training cohort ...] [--doc PAGE]

Run from the root of the checkout. Each trial is a tool that can be run by itself; what it says last is kept
in FOLDER/trials.json, so that trials can be run one by one. `--doc` writes the tables of all that are there
into the page. The full form takes hours, the short one minutes; tests run the short form of some. Ends with
code 1 if a trial fails.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BEGIN, END = "<!-- trials of tools/reliability.py -->", "<!-- end of the trials -->"


def trials(out, short):
    """Name: (what was tried, command). `out` is a folder for their files."""

    def number(full, few):
        return str(few if short else full)

    kill = ["tools/kill_commands.py", "--kills", number(40, 2), "--commands"]
    left = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/io/test_left_behind.py"]
    return {
        "files": (
            "damaged files (table above)",
            ["tools/fuzz_readers.py", "--each", number(150, 2), "--out", str(out / "counts.json")],
        ),
        "training": (
            "SIGKILL of training at random moments",
            ["tools/kill_and_resume.py", "--kills", number(40, 2), "--steps", number(160, 30), "--out"],
        ),
        "cohort": (
            "SIGKILL of one of two processes of a cohort",
            ["tools/interrupt_cohort.py"],
        ),
        **{
            name: (f"SIGKILL of `cmb-jax {called}`", [*kill, name, "--out"])
            for name, called in (
                ("swi", "swi"),
                ("implant", "implant"),
                ("review", "review import"),
                ("calibrate", "calibrate"),
            )
        },
        "outputs": ("SIGKILL of writers, full disk, names", left),
    }


def run(name, command, short):
    """The last line that a trial says.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        own = [] if name in ("files", "outputs") else [str(Path(temporary, name))]
        count = [str(4 if short else 200)] if name == "cohort" else []
        if name == "cohort":
            Path(temporary, name).mkdir()
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "CMB_JAX_TEST_KILLS": "3" if short else "40"}
        done = subprocess.run(
            [sys.executable, *command, *own, *count],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1]


def write_table(page, found):
    """What was tried, between two marks of a page."""
    rows = ["| what | result | on |", "|---|---|---|"]
    rows += [f"| {each['what']} | {each['result']} | {each['on']} |" for each in found.values()]
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    page.write_text("\n".join([head + BEGIN, *rows, END]) + rest.split(END)[1], encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(trials(Path(), False)))
    parser.add_argument("--doc", type=Path)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    record = chosen.out / "trials.json"
    known = trials(chosen.out, chosen.short)
    for name in chosen.only if chosen.only is not None else known:
        what, command = known[name]
        result = run(name, command, chosen.short)
        print(f"{what}: {result}", flush=True)
        found = json.loads(record.read_text()) if record.exists() else {}
        found[name] = {"what": what, "result": result, "on": datetime.date.today().isoformat()}
        record.write_text(json.dumps({key: found[key] for key in known if key in found}, indent=1))
    if chosen.doc:
        write_table(chosen.doc, json.loads(record.read_text()))
        if (chosen.out / "counts.json").exists():
            fuzz = ["tools/fuzz_readers.py", "--out", str(chosen.out / "counts.json")]
            subprocess.run([sys.executable, *fuzz, "--doc", str(chosen.doc)], check=True)


if __name__ == "__main__":
    main()
