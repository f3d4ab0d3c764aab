"""`bench --contexts`: the cache at each length of the context."""

import pytest

from decoding.bench.extra import contexts
from decoding.bench.extra.contexts import CHUNK, cache_bytes
from decoding.bench.subject import Subject
from decoding.fast import KERNELS
from drafter.fast import FastDrafter
from gemma4.config import FULL, SLIDING
from gemma4.fast.target import FastGemma4
from tests.models import TINY, WINDOW, random_target, small_subject


@pytest.mark.parametrize("layout", list(TINY))
def test_bytes_of_the_cache(layout):
    """Full layers: proportional to the context.  Sliding layers: at most a window and a chunk."""
    config = TINY[layout]
    subject = Subject(layout, random_target(config), None, [])
    lengths = [WINDOW, WINDOW + CHUNK, 2 * (WINDOW + CHUNK), 4 * (WINDOW + CHUNK)]
    sizes = [cache_bytes(subject, context) for context in lengths]
    per_token = {kind: 0 for kind in (SLIDING, FULL)}
    for layer in range(config.first_kv_shared_layer):
        per_token[config.layer_types[layer]] += 2 * config.kv_heads(layer) * config.layer_head_dim(layer) * 4
    assert [size[FULL] for size in sizes] == [context * per_token[FULL] for context in lengths]
    assert [size[SLIDING] for size in sizes] == [
        min(context, WINDOW + CHUNK) * per_token[SLIDING] for context in lengths
    ]


def test_contexts_measure_what_generate_runs(monkeypatch):
    """Twins and fast kernels, for every length and every stage."""
    made = []

    class Timer:
        def __init__(self, stage, target, draft_model, state, options):
            made.append((type(target), type(draft_model), options.kernels))

        def lap(self) -> float:
            return 1.0

    monkeypatch.setattr(contexts, "Timer", Timer)
    contexts.measure_contexts(small_subject(), (16, 32), runs=1)
    assert made == 2 * 3 * [(FastGemma4, FastDrafter, KERNELS)]


def test_a_full_context_has_room_for_one_token():
    """A step adds the last token; one more would overwrite the first."""
    state, config = contexts.full_state(small_subject(), 16), small_subject().target.config
    assert state.cache.layers[config.donors[FULL]].capacity == 16 and state.cache.length.tolist() == [15]
