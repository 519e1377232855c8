"""cmb-jax benchmark: times against PyTorch, MONAI and NumPy, by the checkout's folder `benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.ops import self_test as kernels_self_test

CHECKOUT = Path(cmb_jax.__file__).resolve().parent.parent


def run(
    *,
    case: tuple[str, ...],
    json: Path | None,
    repeats: int,
    scaling: bool,
    overwrite: bool,
    keep_memory: bool | None,
    self_test: bool = False,
) -> None:
    """Run the comparison in a process of its own; its exit code becomes ours.

    With `self_test` the CPU kernels are compared with sums in float64 instead; the exit code is 1 if they
    differ.

    Raises:
      UserError: this is an installation without the folder `benchmarks`.
    """
    if self_test:
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
    options = ["--repeats", str(repeats)]
    options += ["--case", *case] if case else []
    options += ["--json", str(json.absolute())] if json is not None else []
    options += ["--scaling"] if scaling else []
    options += ["--overwrite"] if overwrite else []
    if keep_memory is not None:
        options += ["--keep-memory" if keep_memory else "--no-keep-memory"]
    sys.stdout.flush()
    code = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=CHECKOUT, check=False
    ).returncode
    if code:
        sys.exit(code)
