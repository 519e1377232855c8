"""Run the CPU kernels on random shapes under AddressSanitizer: python tools/fuzz_kernels.py [COUNT].

Needs gcc on Linux. Builds the kernels with the sanitizer in a temporary folder and starts itself again with
the sanitizer's run time loaded first, once for each instruction set of the processor (one alone:
CMB_JAX_CPU_ISA). On processors without AMX its kernels run with tiles in software. Ends with exit code 0 and
counts, or with the sanitizer's report.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxlib
import numpy as np

SOURCES = Path(__file__).parents[1] / "cmb_jax/ops/cpu"
EDGES = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (3, 3, 1), (1, 1, 3), (1, 1, 1)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 2)]


SETS = ("avx2", "avx512", "avx512bf16", "amx")


def build(folder):
    library = Path(folder) / "_kernels.so"
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined"]
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():
        flags.append("-DCMB_AMX_IN_SOFTWARE")
    include = Path(jaxlib.__file__).parent / "include"
    subprocess.run(
        ["g++", *flags, "-isystem", include, *sorted(SOURCES.glob("*.cc")), "-o", library], check=True
    )
    return library


def restart(library, count):
    # the C++ library too: the sanitizer looks for what throws exceptions when it starts
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in names
    ]
    settings = {
        "LD_PRELOAD": " ".join(done.stdout.strip() for done in found),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, __file__, str(count), str(library)]
    asked = os.environ.get("CMB_JAX_CPU_ISA")
    codes = [
        subprocess.run(command, env={**os.environ, **settings, "CMB_JAX_CPU_ISA": name}).returncode
        for name in ([asked] if asked else SETS)
    ]
    return max(codes, key=abs)


def fuzz(library_path, count):
    import jax
    import jax.numpy as jnp

    from cmb_jax.ops import conv
    from cmb_jax.ops.cpu import library
    from cmb_jax.ops.norm import channel_norm
    from cmb_jax.ops.resample import upsample_nearest

    name = library.load(Path(library_path))
    if name == "none":
        print(f"{os.environ['CMB_JAX_CPU_ISA']}: not on this processor")
        return
    library.instruction_set = lambda: name
    rng = np.random.default_rng(0)
    plain = {strides: jax.jit(lambda x, k, s=strides: conv._bare(x, k, s)) for strides in STRIDES}
    worst = 0.0
    for number in range(count):
        edges, strides = EDGES[rng.integers(len(EDGES))], STRIDES[rng.integers(len(STRIDES))]
        sizes = [int(rng.choice([1, 2, 2, 3, rng.integers(1, high)])) for high in (9, 12, 70)]
        few = [1, 2, 3, 8, 16, 24, 32, 48, rng.integers(1, 130)]
        inputs, outputs = (int(rng.choice(few)) for _ in range(2))
        if number % 3 == 0:  # what AMX takes
            edges, strides = EDGES[number % 2], (1, 1, 1)
            inputs, outputs = (int(rng.choice([16, 24, 32, 48, 64])) for _ in range(2))
        elif number % 3 == 1:  # what has all its gradients in one pass
            edges, strides = (1, 1, 1), (1, 1, 1)
        x = jnp.asarray(rng.normal(size=(int(rng.integers(0, 3)), *sizes, inputs)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(*edges, inputs, outputs)), jnp.float32)
        bias = jnp.asarray(rng.normal(size=outputs), jnp.float32)
        grid = [-(-size // step) for size, step in zip(sizes, strides, strict=True)]
        even = all(size % 2 == 0 for size in grid)
        shape = (x.shape[0], *(size // 2 for size in grid), outputs)
        coarse = jnp.asarray(rng.normal(size=shape), jnp.float32) if even else None
        rounded = bool(rng.integers(2))
        options = {
            "strides": strides,
            "relu": bool(rng.integers(2)),
            "products": "bfloat16" if rounded else "float32",
        }
        value, pull = jax.vjp(lambda *a, o=options: conv.conv3d(*a, **o), x, kernel, bias, coarse)
        jax.block_until_ready(pull(jnp.ones_like(value)))
        scale = jnp.ones(outputs)
        normal, pull = jax.vjp(lambda *a, o=options: channel_norm(*a, relu=o["relu"]), value, scale, bias)
        jax.block_until_ready(pull(jnp.ones_like(normal)))
        if x.size and number % 10 == 0:
            exact = (conv._to_bfloat16(a) for a in (x, kernel)) if rounded else (x, kernel)
            want = plain[strides](*exact) + bias + (0 if coarse is None else upsample_nearest(coarse))
            want = jnp.maximum(want, 0) if options["relu"] else want
            difference = jnp.abs(value - want).max() / (jnp.abs(want).max() + 1e-6)
            worst = max(worst, float(difference))
    print(
        f"{count} shapes with {name}: no error; largest relative difference to XLA's convolution {worst:.1e}"
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    if len(sys.argv) > 2:
        fuzz(sys.argv[2], count)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(restart(build(folder), count))
