"""Where a training step's time goes, operation by operation: python tools/profile_step.py [CASE] [ROWS].

CASE is a case of ours in `benchmarks` (train-small, train-wide, infer-volume, ...). Run from the root of the
checkout. Prints each operation's milliseconds, its share, and for convolutions the operations per second.
"""

import collections
import glob
import gzip
import importlib
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

STEPS = 5


def traced(run, folder):
    """Seconds in all and by operation of one step, from the profiler's trace."""
    import jax

    with jax.profiler.trace(folder):
        for _ in range(STEPS):
            run()
    (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    spent = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in str(event.get("args", {})):
            spent[event["name"]] += event["dur"] / 1e6 / STEPS
    return spent


def operations(folder):
    """Line of each operation in the largest compiled program, and the shapes of its results."""
    texts = [path.read_text() for path in Path(folder).glob("*after_optimizations.txt")]
    text = max(texts, key=len)
    lines, shapes = {}, {}
    for match in re.finditer(r"%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(.*", text):
        lines[match[1]] = match[0]
        shapes[match[1]] = [
            [int(n) for n in s.split(",") if n] for s in re.findall(r"\[([\d,]*)\]", match[2])
        ]
    return lines, shapes


def describe(name, lines, shapes):
    """What an operation is, and the 1e9 floating-point operations of a convolution (0 for others)."""
    line = lines.get(name, "")
    target = re.search(r'custom_call_target="cmb_jax_(\w+)"', line)
    arguments = re.search(r"custom-call\(([^)]*)\)", line)
    if target is None or arguments is None:
        where = re.search(r'op_name="([^"]*)"', line)
        return (where[1].split("/", 1)[-1] if where else name)[-60:], 0.0
    inputs = [shapes.get(n, [[]])[0] for n in re.findall(r"%([\w.\-]+)", arguments[1])]
    results = shapes[name]
    what, gflop = target[1], 0.0
    if what == "conv3d":
        voxels, kernel = math.prod(results[0][:4]), inputs[2]
        gflop = 2e-9 * voxels * math.prod(kernel)
        direction = "towards input" if "mirrored = true" in line else "forward"
        what = f"conv3d {direction} {kernel} at {results[0][:4]}"
    elif what == "conv3d_kernel_gradient":
        gflop = 2e-9 * math.prod(inputs[1][:4]) * math.prod(results[0])
        what = f"conv3d towards kernel {results[0]} at {inputs[1][:4]}"
    elif what == "pointwise_gradient":
        gflop = 4e-9 * math.prod(inputs[1][:4]) * math.prod(inputs[3])
        what = f"conv3d all gradients {inputs[3]} at {inputs[1][:4]}"
    else:
        what = f"{what} at {inputs[0]}"
    return what, gflop


def main():
    case_name = sys.argv[1] if len(sys.argv) > 1 else "train-small"
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    with tempfile.TemporaryDirectory() as folder:
        dump = " ".join([f"--xla_dump_to={folder}/hlo", "--xla_dump_hlo_as_text"])
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}"
        sys.path.insert(0, os.getcwd())
        from benchmarks.cases import CASES
        from cmb_jax.devices import keep_freed_memory

        case = CASES[case_name]
        if case.keep_memory:
            keep_freed_memory()
        prepared = importlib.import_module(case.ours).prepare(dict(case.options), "cpu")
        for _ in range(3):
            prepared.run()
        spent = traced(prepared.run, f"{folder}/trace")
        lines, shapes = operations(f"{folder}/hlo")
    whole = sum(spent.values())
    described = {name: describe(name, lines, shapes) for name in spent}
    in_convolutions = sum(seconds for name, seconds in spent.items() if described[name][1])
    print(f"{case_name}: {1e3 * whole:.0f} ms of operations per run (some at the same time)")
    print(f"convolutions {100 * in_convolutions / whole:.0f} %")
    for name, seconds in spent.most_common(rows):
        what, gflop = described[name]
        rate = f"{gflop / seconds:4.0f} GFLOP/s" if gflop else ""
        print(f"{1e3 * seconds:7.2f} ms {100 * seconds / whole:5.1f} % {rate:>12}  {what}")


if __name__ == "__main__":
    main()
