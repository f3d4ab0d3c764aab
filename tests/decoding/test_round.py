"""A round as one program: it lowers for every platform, and its operations say which stage and which layer they belong to."""

import functools
import re

import jax
import numpy as np
import pytest
from jax import export

from decoding.fast import round_loop
from decoding.options import Options
from decoding.round import speculative_round, speculative_step
from decoding.sampling import Sampling
from decoding.stages.prefill import prefill
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target

SAMPLED = Options(3, Sampling(0.9, top_k=9, top_p=0.95), Sampling(0.9), eos_ids=(1,), acceptance="block")


def arguments(layout: str, options: Options):
    target = random_target(TINY[layout])
    state = prefill(target, [[2, 7, 5], [2, 3]], max_new_tokens=9, draft_length=3, key=jax.random.key(0))
    return target, random_drafter(TINY_DRAFTERS[layout]), state


@pytest.mark.parametrize("options", [Options(3), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])
def test_a_round_lowers_for_every_platform(layout, platform, options, monkeypatch):
    """Each operation has a lowering there, which needs no such device.  (To compile and to run do.)"""
    models_and_state = arguments(layout, options)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)  # by which the formulas choose their form
    step = jax.jit(functools.partial(speculative_round, options=options))
    program = export.export(step, platforms=[platform])(*models_and_state)
    assert program.platforms == (platform,)
    assert program.out_avals == tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(models_and_state[-1]))


def test_a_profile_names_stages_and_layers():
    """Before it is compiled: a kept program may have the names of an older one."""
    program = speculative_step.lower(*arguments("E2B", SAMPLED), SAMPLED).as_text(debug_info=True)
    names = re.findall(r'loc\("([^"]*)"', program)
    of_target = [name for name in names if "verify/" in name]
    of_others = [name for name in names if "verify/" not in name]  # what a drafter's scan has in it stands by itself
    for layer in range(TINY["E2B"].num_hidden_layers):
        assert any(f"verify/layers.{layer}/" in name for name in of_target)
    for layer in range(TINY_DRAFTERS["E2B"].text.num_hidden_layers):
        assert any(f"layers.{layer}/" in name for name in of_others)
    for stage in ("accept", "emit"):
        assert any(f"{stage}/" in name for name in of_others)


def test_the_loop_does_not_copy_the_cache():
    """A round writes it where it lies."""
    target, draft_model, state = arguments("E2B", Options(3))
    loop = jax.jit(round_loop._rounds(speculative_round, 16), static_argnums=3, donate_argnums=2)
    program = loop.lower(target, draft_model, (state, np.int32(16)), Options(3)).compile()
    shapes = {f"f32[{','.join(map(str, buffer.shape))}]" for buffer in jax.tree.leaves(state.cache.layers)}
    copied = set(re.findall(r"= (f32\[[\d,]+\])\S* copy\(", program.as_text()))
    assert not copied & shapes
