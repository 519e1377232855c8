"""Memory of a device and exchanges of a training step on meshes, from the compiled program; nothing is run.

python tools/mesh_memory.py [--volume 128 256 256] [--batch 1] [--meshes 1x1 1x2 1x4 1x8]

Run from the root of the checkout. Compiles for simulated CPU devices, which takes a minute a mesh.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections import Counter

sys.path.insert(0, os.getcwd())


def compiled_step(config, mesh):
    """The step for a configuration's batches on a mesh, compiled from shapes alone."""
    import jax
    import jax.numpy as jnp

    from cmb_jax.detector.anchors import Truths
    from cmb_jax.training.detector import DeviceBatch, init_state, make_step

    batch, (z, y, x), truths = config.data.batch_size, config.data.patch_shape, config.data.max_truths
    shapes = DeviceBatch(
        image=jax.ShapeDtypeStruct((batch, z, y, x, 2), jnp.float32),
        truths=Truths(
            boxes=jax.ShapeDtypeStruct((batch, truths, 6), jnp.float32),
            valid=jax.ShapeDtypeStruct((batch, truths), jnp.bool_),
            ignored=jax.ShapeDtypeStruct((batch, truths), jnp.bool_),
        ),
        mimics=jax.ShapeDtypeStruct((batch, z, y // 2, x // 2), jnp.uint8),
    )
    state = jax.eval_shape(lambda: init_state(config, mesh))
    return make_step(config, mesh).lower(state, shapes).compile()


def peak_bytes(compiled):
    """Bytes of one device: arguments, results that do not reuse them, and what lives in between."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def collectives(text):
    """(operation, shape) of every array that a compiled program's devices exchange."""
    found = []
    operation = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for match in re.finditer(rf"= (\(.*?\)|\S+) {operation}", text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]):
            found.append((match[2], tuple(int(n) for n in dims.split(",") if n)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", type=int, nargs=3, default=(128, 256, 256), help="voxels z y x")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--meshes", nargs="+", default=["1x1", "1x2", "1x4", "1x8"], help="data x space")
    chosen = parser.parse_args()
    meshes = [tuple(int(n) for n in mesh.split("x")) for mesh in chosen.meshes]
    devices = max(math.prod(mesh) for mesh in meshes)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"

    from cmb_jax.config import Config
    from cmb_jax.training.distributed import make_mesh

    config = Config()
    data = dataclasses.replace(config.data, patch_shape=tuple(chosen.volume), batch_size=chosen.batch)
    config = dataclasses.replace(config, data=data)
    first = None
    for mesh in meshes:
        compiled = compiled_step(config, make_mesh(*mesh))
        peak = peak_bytes(compiled)
        first = first or peak
        exchanged = Counter(name for name, _ in collectives(compiled.as_text()))
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(exchanged.items()))
        print(f"{mesh[0]}x{mesh[1]}: {peak / 1e6:.0f} MB per device, {first / peak:.2f} times less; {kinds}")


if __name__ == "__main__":
    main()
