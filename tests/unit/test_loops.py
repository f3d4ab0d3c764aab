"""The loop on the device yields the rounds of the host's loop: the same tokens, the same record of each round."""

import jax
import numpy as np
import pytest

import decoding
from decoding import Sampling
from decoding.state import Round
from tests.small_pair import VOCAB, small_drafter, small_target

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]  # the second is longer than the window


def both_ways(generate, *args, **settings) -> tuple[decoding.Generation, list[Round]]:
    """What the loop on the device gave, after comparing all of it with the host's."""
    outs, seen = [], []
    for on_device in (False, True):
        rounds: list[Round] = []
        outs.append(generate(*args, on_round=rounds.append, on_device=on_device, key=jax.random.key(5), **settings))
        seen.append(rounds)
    host, device = outs
    assert device.stats == host.stats
    for ours, theirs in zip(device.tokens, host.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(*reversed(seen), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    return device, seen[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("new_tokens", [1, 2, 21])
def test_speculative(temperature, new_tokens):
    pair, settings = (small_target(), small_drafter()), {"sampling": Sampling(temperature), "draft_length": 3}
    out, rounds = both_ways(decoding.generate, *pair, PROMPTS, max_new_tokens=new_tokens, **settings)
    assert [len(text) for text in out.tokens] == [new_tokens] * 2
    assert len(rounds) <= new_tokens and (new_tokens == 1) == (len(rounds) == 1)


def test_rows_end_at_their_own_eos():
    """The text of each row without EOS says which token to call EOS, so that one row ends long before the other."""
    pair = small_target(), small_drafter()
    texts = decoding.generate_autoregressive(pair[0], PROMPTS, max_new_tokens=30).tokens
    first = [{int(token): place for place, token in reversed(list(enumerate(text)))} for text in texts]
    eos = max(range(VOCAB), key=lambda token: abs(first[0].get(token, 30) - first[1].get(token, 30)))
    out, _ = both_ways(decoding.generate, *pair, PROMPTS, max_new_tokens=30, eos_ids=(eos,))
    assert [len(text) for text in out.tokens] == [places.get(eos, 29) + 1 for places in first]
    assert len(out.tokens[0]) != len(out.tokens[1])


def test_autoregressive():
    out, rounds = both_ways(decoding.generate_autoregressive, small_target(), PROMPTS, max_new_tokens=9)
    assert len(rounds) == 9


def test_head_laid_out_for_the_cpu():
    """The same logits, from the copy; the model itself stays as it was."""
    target = small_target()
    twin = target.with_head()
    hidden = jax.random.normal(jax.random.key(0), (3, target.config.hidden_size))
    np.testing.assert_allclose(twin.logits(hidden), target.logits(hidden), rtol=1e-6)
    twin.head[...] *= 2
    assert np.abs(twin.logits(hidden) - target.logits(hidden)).max() > 0.1  # it is what `logits` reads
    assert target.head is None
