"""Operations, bytes and messages of compiled programs, against XLA's own count and against formulas."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.ops.conv import conv3d
from cmb_jax.research.costs import Shape, costs_of, parse

LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def costs(function, *shapes, devices=1):
    compiled = jax.jit(function).lower(*[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]).compile()
    return costs_of(parse(compiled.as_text()), devices), compiled.cost_analysis()


def convolution(x, kernel, strides=(1, 1, 1), **options):
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=LAYOUT, **options)


@pytest.mark.parametrize("options", [{}, {"strides": (1, 2, 2)}, {"rhs_dilation": (2, 1, 1)}])
def test_convolutions_and_their_gradients_as_xla_counts_them(options):
    def both(x, kernel):
        return jax.grad(lambda x, k: jnp.square(convolution(x, k, **options)).sum(), argnums=(0, 1))(
            x, kernel
        )

    ours, theirs = costs(both, (2, 5, 6, 7, 3), (3, 3, 3, 3, 4))
    # XLA adds an operation for each element of the few other instructions
    assert 0.98 * theirs["flops"] < ours.flops <= theirs["flops"]


def test_a_matrix_product_in_a_loop_counts_as_often_as_it_runs():
    def repeated(a, b):
        return lax.scan(lambda carry, _: (jnp.dot(carry, b), None), a, length=7)[0]

    ours, _ = costs(repeated, (8, 16), (16, 16))
    assert ours.flops == 7 * 2 * 8 * 16 * 16
    assert ours.unknown_loops == 0


def test_a_loop_over_data_is_counted_once_and_said():
    def until(a, b):
        return lax.while_loop(lambda c: c.sum() < 1e6, lambda c: jnp.dot(c, b), a)

    ours, _ = costs(until, (8, 16), (16, 16))
    assert (ours.flops, ours.unknown_loops) == (2 * 8 * 16 * 16, 1)


def test_our_own_kernels_count_as_the_plain_convolution():
    """Forward, towards the input and towards the kernel; zeros at the border are multiplied too."""

    def both(x, kernel):
        return jax.grad(lambda x, k: jnp.square(conv3d(x, k)).sum(), argnums=(0, 1))(x, kernel)

    ours, _ = costs(both, (2, 8, 8, 8, 4), (3, 3, 3, 4, 4))
    assert ours.flops == pytest.approx(3 * 2 * 2 * 8**3 * 27 * 16)


def test_bytes_of_a_pass_over_an_array():
    ours, _ = costs(lambda x: 2 * x + 1, (1000,))
    assert ours.bytes == 8000


def test_a_loop_that_cuts_slices_reads_each_once():
    def sums(x):
        return lax.map(lambda row: jnp.sin(row) * 2, x)

    ours, _ = costs(sums, (50, 400))
    assert 2 * 4 * 50 * 400 <= ours.bytes < 4 * 4 * 50 * 400


def test_messages_of_a_sharded_gradient():
    """The gradient of a shared array is summed over the devices: one all-reduce of its size."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    gradient = jax.jit(
        jax.grad(lambda w, x: jnp.square(x @ w).sum()),
        in_shardings=(everywhere, spread),
        out_shardings=everywhere,
    )
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 4), (64, 16))]
    ours = costs_of(parse(gradient.lower(*shapes).compile().as_text()), 8)
    (message,) = ours.collectives
    assert (message.kind, message.times, message.bytes, message.devices) == ("all-reduce", 1, 4 * 16 * 4, 8)
    assert ours.flops == 2 * 2 * (64 / 8) * 16 * 4


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups=mesh['a'=4,'b'=2,'c'=8] {'a','c'}", 32),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups={}", 64),
    ],
)
def test_groups_in_every_notation(groups, devices):
    text = f"""HloModule m

ENTRY %main (p: bf16[3,5]) -> (f32[2], bf16[3,5]) {{
  %p = bf16[3,5]{{1,0:T(8,128)(2,1)}} parameter(0)
  ROOT %r = (f32[2]{{0}}, /*index=1*/bf16[3,5]{{1,0}}) all-reduce(%p), channel_id=1, {groups}, to_apply=%add
}}
"""
    program = parse(text)
    root = program.computations["main"]["r"]
    assert root.results == (Shape("f32", (2,)), Shape("bf16", (3, 5)))
    (message,) = costs_of(program, 64).collectives
    assert (message.bytes, message.devices) == (30, devices)


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("module @jit_f {\n}\n")
