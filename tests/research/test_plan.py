"""Plans of a training step: what the programs need, what is predicted from it, and the exported programs."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.inputs import parameter_shapes
from cmb_jax.cli.research import PlanOptions, mesh_shape
from cmb_jax.cli.research import plan as run
from cmb_jax.config import Config, DataConfig, InferenceConfig, TrainConfig
from cmb_jax.detector.network import Detector, Template
from cmb_jax.devices import Hardware, peak_flops
from cmb_jax.errors import UserError
from cmb_jax.inference.proposals import best_of_windows, window_candidates
from cmb_jax.ops.cpu import library
from cmb_jax.research.costs import Collective, Costs, Operation
from cmb_jax.research.plan import (
    BANDWIDTH_SHARE,
    LATENCY_S,
    compile_step,
    export_step,
    message_seconds,
    plan_step,
    predict,
)
from cmb_jax.training.distributed import make_mesh, over_batch, replicated
from tests.tiny import TINY_MODEL

CONFIG = Config(
    name="tiny",
    model=TINY_MODEL,
    data=DataConfig(patch_shape=(16, 32, 32), batch_size=2, max_truths=4),
    train=TrainConfig(steps=10, warmup_steps=2),
    inference=InferenceConfig(tile_shape=(16, 32, 32), max_candidates=64, max_detections=8),
)
CONFIG_FILE = """
from cmb_jax.config import Config, DataConfig
from tests.tiny import TINY_MODEL

def get_config():
    return Config(model=TINY_MODEL, data=DataConfig(patch_shape=(16, 32, 32), batch_size=2, max_truths=4))
"""
DEVICE = Hardware(
    name="round numbers",
    bfloat16_flops=2e9,
    float32_flops=1e9,
    flops_share=0.5,
    memory_bytes=1e9,
    memory_bandwidth=1e8,
    link_bandwidth=1e7,
    domain=8,
    network_bandwidth=1e6,
)


def test_each_instruction_takes_the_longer_of_its_two_bounds():
    costs = Costs(
        operations=(
            Operation(times=3, flops=1e9, bytes=1e6),
            Operation(times=1, flops=0, bytes=1e8),
        ),
        collectives=(Collective(kind="all-reduce", times=2, bytes=1e6, devices=4),),
        unknown_loops=0,
    )
    seconds = predict(costs, DEVICE, "float32")
    assert seconds.computing == pytest.approx(3 / 0.5)
    assert seconds.moving == pytest.approx(1 / BANDWIDTH_SHARE)
    # a ring of 4 passes 2 * 3 / 4 of the array over each link
    assert seconds.messages == pytest.approx(2 * (LATENCY_S + 1.5e6 / (BANDWIDTH_SHARE * 1e7)))
    assert predict(costs, DEVICE, "bfloat16").computing == pytest.approx(1.5 / 0.5)


def test_a_group_beyond_a_domain_waits_for_the_network():
    near = Collective(kind="all-gather", times=1, bytes=1e6, devices=8)
    far = dataclasses.replace(near, devices=9)
    assert message_seconds(near, DEVICE) == pytest.approx(LATENCY_S + 7e6 / (BANDWIDTH_SHARE * 1e7))
    assert message_seconds(far, DEVICE) == pytest.approx(LATENCY_S + 8e6 / (BANDWIDTH_SHARE * 1e6))


def test_devices_are_known_by_their_kind():
    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

    assert peak_flops(Device(), "bfloat16") == 197e12
    Device.device_kind = "TPU v9"
    assert peak_flops(Device(), "bfloat16") is None


def test_a_plan_on_this_machine_needs_what_the_model_needs():
    plan = plan_step(CONFIG, (1, 1), "cpu")
    # our kernels multiply the zeros at the border, and codes are computed at some anchors only
    assert plan.costs.flops == pytest.approx(plan.model_flops, rel=0.1)
    assert plan.costs.collectives == ()
    assert plan.weak_scaling == 1
    images = 4 * 2 * 16 * 32 * 32 * 2
    assert plan.memory.arguments > images
    assert plan.memory.temporaries > images


def test_a_mesh_shares_the_work_and_sums_the_gradient():
    plan = plan_step(CONFIG, (2, 2), "v5e")
    assert plan.config.data.batch_size == 4
    # zeros at the border are not counted here; planes at the cuts are computed by both neighbors
    assert 0.6 < plan.costs.flops / (plan.model_flops / 4) < 1.2
    kinds = {message.kind for message in plan.costs.collectives}
    assert {"all-reduce", "collective-permute"} <= kinds
    summed = sum(m.times * m.bytes for m in plan.costs.collectives if m.kind == "all-reduce")
    assert summed > 4 * sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(TINY_MODEL)))
    assert 0 < plan.weak_scaling < 1


def test_accumulation_and_bfloat16_take_less_memory():
    whole = plan_step(CONFIG, (1, 1), "v5e")
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=2))
    parts = plan_step(config, (1, 1), "v5e")
    assert parts.memory.temporaries < whole.memory.temporaries
    # one more forward pass: a third of the model's three
    assert 1.2 < parts.costs.flops / whole.costs.flops < 1.45


def with_precision(precision):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, precision=precision))


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_the_step_is_lowered_for_cuda_and_tpu(precision):
    exported = export_step(with_precision(precision), make_mesh(2, 4))
    assert exported.platforms == ("cuda", "tpu")
    assert exported.nr_devices == 8
    text = exported.mlir_module()
    assert "sdy.sharding" in text
    assert "custom_call @cmb_jax" not in text
    assert ("xbf16>" in text) == (precision == "bfloat16")  # a type, not a folder in a location
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    for line in convolutions:
        assert ("HIGHEST" in line) == (precision == "float32")
    assert all(aval.dtype == "float32" for aval in jax.tree.leaves(exported.out_avals) if aval.ndim > 0)


def test_inference_is_lowered_for_cuda_and_tpu():
    """From prepared windows to scored boxes: network, decoding, suppression, windows spread over the mesh."""
    mesh, windows = make_mesh(8, 1), 8
    template = Template.of(lambda: Detector(CONFIG.model, rngs=nnx.Rngs(0)))
    candidates = functools.partial(window_candidates, template, CONFIG, room=64)

    def infer(params, images, *corners):
        found = jax.vmap(candidates, in_axes=(None, 0, 0, 0, 0))((params,), images[:, None], *corners)
        found = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), found)
        return best_of_windows(CONFIG, found, room=8)

    spread, everywhere = over_batch(mesh), replicated(mesh)
    corner = jax.ShapeDtypeStruct((windows, 3), jnp.int32)
    images = jax.ShapeDtypeStruct((windows, *CONFIG.inference.tile_shape, 2), jnp.float32)
    jitted = jax.jit(infer, in_shardings=(everywhere, *[spread] * 4), out_shardings=everywhere)
    arguments = (template.shapes(), images, corner, corner, corner)
    exported = export.export(jitted, platforms=("cuda", "tpu"))(*arguments)
    assert (exported.platforms, exported.nr_devices) == (("cuda", "tpu"), 8)
    assert "custom_call @cmb_jax" not in exported.mlir_module()
    assert [aval.shape for aval in exported.out_avals] == [(8, 6), (8,), (8,)]


@pytest.mark.tpu
def test_the_step_compiles_for_a_v5e_slice(monkeypatch):
    pytest.importorskip("libtpu")
    # libtpu asks the cloud's server who it is unless it is told
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    mesh = Mesh(np.array(devices).reshape(2, 2), ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    compiled = compile_step(with_precision("bfloat16"), mesh)
    assert "all-reduce" in compiled.as_text()
    assert 0 < compiled.memory_analysis().temp_size_in_bytes < 16e9


def test_the_command_writes_its_plan(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILE)
    out = tmp_path / "plan.json"
    run(PlanOptions(mesh="1x1", hardware="cpu", config=file, measure=True, json=out))
    said = capsys.readouterr().out
    assert "predicted, not measured" in said
    assert "measured:" in said
    written = json.loads(out.read_text())
    assert written["device"]["flops"] > 0
    assert written["measured_seconds"] > 0
    with pytest.raises(UserError, match="exists already"):
        run(PlanOptions(mesh="1x1", hardware="cpu", config=file, json=out))


def test_a_step_is_planned_without_the_compiled_kernels(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(library, "available", lambda: False)
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILE)
    run(PlanOptions(mesh="1x1", hardware="cpu", config=file))
    assert "predicted, not measured" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["32", "0x4", "4x", "axb", "2x2x2"])
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--mesh"):
        mesh_shape(text)


def test_what_cannot_be_planned_is_said(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # the command adds to it
    with pytest.raises(UserError, match="needs 999 devices"):
        run(PlanOptions(mesh="999x1", hardware="v5e"))
    with pytest.raises(UserError, match="multiple of 3"):
        run(PlanOptions(mesh="1x1", hardware="cpu", accumulate=3))
    with pytest.raises(UserError, match="1 or more"):
        run(PlanOptions(mesh="1x1", hardware="cpu", accumulate=0))
    with pytest.raises(UserError, match="--measure"):
        run(PlanOptions(mesh="2x1", hardware="cpu", measure=True))
