"""Programs of full-size models, compiled for a TPU: they fit, and copy neither the cache nor weights."""

import pytest

from decoding.options import Options
from decoding.planning.architecture import models_of
from decoding.planning.devices import DEVICES
from decoding.planning.plan import Setup, memory
from decoding.sampling import Sampling
from gemma4 import PRESETS
from gemma4.config import FULL
from tests.compiled import LARGE, PREFILL, ROUND, STEP, Setting, compile_for, size_of

SAMPLED = Options(4, Sampling(1.0, top_k=64, top_p=0.95), Sampling(1.0), acceptance="block")


def check(devices, setting: Setting) -> None:
    program = compile_for(devices, "tpu", setting)
    print(f"\n{setting}, {len(devices)} x {devices[0].device_kind}: {program.summary()}")
    held = size_of(program.cache.layers) / len(devices)
    keys = size_of(program.cache.layers[program.target.config.donors[FULL]].key)
    assert program.memory.alias_size_in_bytes >= held, "the cache is donated, and updated in place"
    assert program.copied(LARGE) == []
    if setting.program != PREFILL:
        assert program.memory.temp_size_in_bytes < max(keys, 100e6), "one layer's keys"


@pytest.mark.parametrize(
    "name, layers, options", [("E2B", None, Options(4)), ("31B", 6, Options(4)), ("12B", 6, SAMPLED)], ids=str
)
def test_a_round_copies_neither_the_cache_nor_weights(tpus, name, layers, options):
    check(tpus("v5p")[:1], Setting(name, ROUND, context=131_072, layers=layers, options=options))


@pytest.mark.slow
@pytest.mark.parametrize("program", [STEP, ROUND, PREFILL])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("generation", ["v5p", "v6e"])
def test_every_size_at_full_depth(tpus, generation, name, program):
    """On one device where the pair fits by the plan, else on four."""
    models, setting = models_of(name), Setting(name, program)
    assert models.draft_model
    alone = memory(models.target, models.draft_model, Setup(DEVICES[f"tpu-{generation}"], context=setting.context))
    devices = tpus(generation)
    check(devices[: 1 if alone["fits"] else len(devices)], setting)
