"""cmb-jax benchmark: times against PyTorch, MONAI and NumPy, by the checkout's folder `benchmarks`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import cmb_jax
from cmb_jax.errors import UserError

CHECKOUT = Path(cmb_jax.__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time this package against PyTorch, MONAI and NumPy on the same cores (source checkout only)."""

    case: tuple[str, ...] = ()
    """names of cases, such as train-small; default: all."""
    json: Path | None = None
    """file for the rows with facts about the machine."""
    repeats: int = 9
    """of each side of a case; they take turns."""
    scaling: bool = False
    """also measure time and memory against volume size and number of candidates."""
    overwrite: bool = False
    """replace the file if it exists."""
    keep_memory: bool | None = None
    """whether both sides' allocator keeps freed memory; default: in training, as `cmb-jax train` does."""
    self_test: bool = False
    """instead compare the convolution kernels of every instruction set with sums in float64."""


def run(options: BenchmarkOptions) -> None:
    """Run the comparison in a process of its own; its exit code becomes ours.

    With `self_test` the CPU kernels are compared with sums in float64 instead; the exit code is 1 if they
    differ.

    Raises:
      UserError: this is an installation without the folder `benchmarks`.
    """
    if options.self_test:
        from cmb_jax.ops import self_test as kernels_self_test

        tests = kernels_self_test.run()
        print(kernels_self_test.table(tests))
        if not all(test.passed for test in tests):
            sys.exit(1)
        return
    if not (CHECKOUT / "benchmarks" / "__main__.py").is_file():
        raise UserError(
            "the comparison with other frameworks is in the source checkout only (folder benchmarks); "
            "clone the repository and install it with: pip install -e '.[bench]'"
        )
    given = ["--repeats", str(options.repeats)]
    given += ["--case", *options.case] if options.case else []
    given += ["--json", str(options.json.absolute())] if options.json is not None else []
    given += ["--scaling"] if options.scaling else []
    given += ["--overwrite"] if options.overwrite else []
    if options.keep_memory is not None:
        given += ["--keep-memory" if options.keep_memory else "--no-keep-memory"]
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "benchmarks", *given], cwd=CHECKOUT, check=False).returncode
    if code:
        sys.exit(code)
