"""Rounds, steps and prefills of the released sizes, compiled for GPUs.  `-s` prints each program's kernels, bytes and FLOPs."""

import re

import pytest

from decoding.bench.work import Storage, draft_work, forward_work
from decoding.planning.architecture import models_of
from decoding.planning.devices import DEVICES
from decoding.planning.plan import Setup, plan
from gemma4 import PRESETS
from gemma4.checkpoints.params import named_params, shape_only
from gemma4.config import FULL
from gemma4.sharding import footprint
from tests.compiled import PREFILL, ROUND, STEP, Program, Setting, compile_for, size_of

GAMMA = 4


def check(program: Program, setting: Setting, devices: int = 1) -> None:
    """It fits, the cache stays where it is, and nothing large is copied."""
    memory, config = program.memory, program.target.config
    held = size_of(program.cache.layers)
    print(f"\n{setting}: {program.summary()}")
    print(f"  {work(setting, devices)}")
    assert memory.alias_size_in_bytes >= held / devices, "the cache is donated, and updated in place"
    keys = size_of(program.cache.layers[config.donors[FULL]].key) / devices
    assert program.copied(least=keys) == [], "neither the cache nor a weight is copied"
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert total < DEVICES["h100"].memory
    limits = {STEP: 100e6, ROUND: 100e6, PREFILL: 1200e6}
    assert memory.temp_size_in_bytes < limits[setting.program] * setting.batch


def work(setting: Setting, devices: int) -> str:
    """What the formulas ask for (`bench/work.py`): XLA tells neither bytes nor FLOPs for a GPU that is not there."""
    models, storage = models_of(setting.name), Storage(devices=devices)
    tokens = {STEP: 1, ROUND: GAMMA + 1, PREFILL: 512}[setting.program]
    needed = forward_work(models.target, setting.batch, tokens, setting.context - tokens, storage)
    if setting.program == ROUND and models.draft_model:
        step = draft_work(models.target, models.draft_model, setting.batch, setting.context, storage)
        needed += type(needed)(GAMMA * step.bytes, GAMMA * step.flops)
    return f"at full depth at least {needed.bytes / 1e9:.2f} GB and {needed.flops / 1e9:.0f} GFLOP on each device"


@pytest.mark.parametrize("program", [STEP, ROUND])
def test_e2b(gpus, program):
    """At full depth.  The plan's kernels are these, within a fifth; its memory within 5 %."""
    setting = Setting("E2B", program)
    compiled = compile_for(gpus("h100", 1), "cuda", setting)
    check(compiled, setting)
    check_plan(compiled, setting)


def check_plan(compiled: Program, setting: Setting) -> None:
    found = plan(models_of(setting.name), Setup(DEVICES["h100"], 1, setting.context, setting.batch, (GAMMA,)))
    step, *of_round = found["stages"]
    planned = step["kernels"] if setting.program == STEP else sum(stage["kernels"] for stage in of_round)
    if setting.program != PREFILL:
        assert planned == pytest.approx(sum(compiled.kernels.values()), rel=0.2)
    memory, theirs = found["memory"], compiled.memory
    parts = memory["target"] + memory["cache"] + (memory["drafter"] if setting.program == ROUND else 0)
    workspace = memory["prefill_workspace"] if setting.program == PREFILL else memory["round_workspace"]
    assert parts + workspace == pytest.approx(theirs.argument_size_in_bytes + theirs.temp_size_in_bytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("program", [STEP, ROUND, PREFILL])
@pytest.mark.parametrize("name", PRESETS)
def test_every_size_at_full_depth(gpus, name, program):
    setting = Setting(name, program)
    compiled = compile_for(gpus("h100", 1), "cuda", setting)
    check(compiled, setting)
    check_plan(compiled, setting)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["E2B", "12B"])
def test_an_older_card(gpus, name):
    setting = Setting(name, ROUND, layers=None if name == "E2B" else 12)
    check(compile_for(gpus("a100", 1), "cuda", setting), setting)


@pytest.mark.parametrize("name", [pytest.param("31B"), pytest.param("26B-A4B", marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", [pytest.param(STEP), pytest.param(ROUND, marks=pytest.mark.slow)])
def test_eight_cards(gpus, name, program):
    """Six layers, split as in `gemma4/sharding.py`: devices add up activations, and no weight or table is sent."""
    setting = Setting(name, program, layers=6)
    compiled = compile_for(gpus("h100", 8), "cuda", setting)
    check(compiled, setting, devices=8)
    assert max(compiled.exchanged) < 16e6, "logits of all tokens at most"
    if not compiled.target.config.enable_moe_block:
        sums = 2 * 6 + (1 if program == STEP else 0)
        assert compiled.collectives["all-reduce"] >= sums, "after attention and after the MLP of each layer"
    arguments = compiled.memory.argument_size_in_bytes
    target = shape_only(type(models_of(name).target), compiled.target.config, "bfloat16")
    assert footprint(named_params(target), 8).each < arguments < DEVICES["h100"].memory


@pytest.mark.slow
def test_float32_where_the_reference_says_so(gpus):
    """Logits, and whatever is not a product: softmax, norms, soft cap and GELU."""
    text = compile_for(gpus("h100", 1), "cuda", Setting("E2B", ROUND)).text
    assert "f32[1,5,262144]" in text or "f32[5,262144]" in text, "logits"
    for operation in ("exponential", "rsqrt", "tanh"):  # of the softmax, of RMSNorm, of the soft cap and of GELU
        kinds = set(re.findall(rf"= (\w+)\[[\d,]*\]\S* {operation}\(", text))
        assert kinds == {"f32"}, operation
