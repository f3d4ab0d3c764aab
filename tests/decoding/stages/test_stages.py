"""Each stage of a round by itself, in seconds: what it is given, what it gives.  (The law of acceptance: tests/properties.)"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import drafter
import gemma4
from decoding.sampling import Sampling, sample_from, token_probs
from decoding.stages.accept import check_shapes, decide, residual
from decoding.stages.accept_block import decide_block
from decoding.stages.emit import count_emitted, row_at, with_next_token
from gemma4 import PRESETS, Gemma4
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, random_tokens

GAMMA, WRITTEN = 4, 9
EOS, OTHER_EOS = 1, 2
LENGTHS = np.array([9, 5])  # committed tokens of each row


@pytest.fixture(scope="module")
def pair():
    return random_target(TINY["E2B"]), random_drafter(TINY_DRAFTERS["E2B"])


@pytest.fixture(scope="module")
def before(pair):
    """After a prompt: the cache, each row's newest token (not in the cache yet), the hidden row that predicted it."""
    target, _ = pair
    cache = gemma4.init_cache(target.config, 2, 32, chunk=WRITTEN)
    out = gemma4.forward(target, random_tokens(2, WRITTEN), cache)
    hidden = out.hidden[jnp.arange(2), LENGTHS - 1]
    return gemma4.rollback(out.cache, jnp.array(LENGTHS, jnp.int32)), jnp.array([7, 11], jnp.int32), hidden


@pytest.fixture(scope="module")
def drafts():
    return jnp.array([[3, 5, 8, 13], [21, 34, 2, 1]], jnp.int32)


# -- share -------------------------------------------------------------------------------------------------------------


def test_share_cache_gives_the_last_owner_of_each_type():
    """E2B: layers 15 to 34 own nothing; 13 is the last sliding one that does, 14 the last full one."""
    cache = jax.eval_shape(lambda: gemma4.init_cache(PRESETS["E2B"], 1, 64, chunk=8))
    shared = drafter.share_cache(cache, PRESETS["E2B"])
    assert shared.donors["sliding_attention"] is cache.layers[13]
    assert shared.donors["full_attention"] is cache.layers[14]
    assert shared.length is cache.length


# -- draft -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.7, top_k=9)], ids=str)
def test_draft_is_a_chain_of_draft_steps(pair, before, sampling):
    """The scaled embedding of the token before, the hidden row of the step before, always the same shared rows."""
    target, draft_model = pair
    cache, token, hidden = before
    shared, key = drafter.share_cache(cache, target.config), jax.random.key(3)
    uniforms = jax.random.uniform(key, (GAMMA, 2))
    block = decoding.draft(
        target, draft_model, token, hidden, shared, key, draft_length=GAMMA, sampling=sampling
    )  # fmt: skip
    for step in range(GAMMA):
        logits, hidden = drafter.forward(draft_model, target.embed_tokens(token), hidden, shared)
        probs = token_probs(logits, sampling)
        np.testing.assert_allclose(block.probs[:, step], probs, rtol=0, atol=1e-5, err_msg=f"the law of draft {step}")
        token = sample_from(probs, uniforms[step])
        assert block.tokens[:, step].tolist() == token.tolist(), f"draft {step}"


@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")], ids=str
)
def test_draft_of_models_in_any_dtypes(pair, before, dtypes):
    """Target and drafter may differ: the hidden row then goes from step to step as the drafter returns it."""
    cast = lambda x, dtype: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    target, draft_model = (
        jax.tree.map(lambda x, to=to: cast(x, to), model) for model, to in zip(pair, dtypes, strict=True)
    )
    cache, token, hidden = before
    shared = drafter.share_cache(cache, target.config)
    hidden, key = hidden.astype(dtypes[0]), jax.random.key(3)
    block = decoding.draft(target, draft_model, token, hidden, shared, key, draft_length=GAMMA)
    for step in range(GAMMA):  # fed by the drafts themselves: in bfloat16 nearly equal logits change places
        logits, hidden = drafter.forward(draft_model, target.embed_tokens(token), hidden, shared)
        token = block.tokens[:, step]
        gap = logits.max(axis=-1) - jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        assert gap.max() < 0.05 * jnp.abs(logits[jnp.isfinite(logits)]).max(), f"draft {step}"


def test_draft_by_itself_is_compiled_once(pair, before, monkeypatch):
    """Of a loop over drafts in Python, not of every call."""
    module, steps = importlib.import_module("decoding.stages.draft"), []
    step = module.step
    monkeypatch.setattr(module, "step", lambda *args: steps.append(1) or step(*args))
    cache, token, hidden = before
    shared = drafter.share_cache(cache, pair[0].config)
    for seed in range(3):
        decoding.draft(
            *pair, token, hidden, shared, jax.random.key(seed), draft_length=GAMMA + 1
        )  # no other test's length
    assert len(steps) == 1


def test_draft_refuses_rows_that_the_cache_does_not_have(pair, before):
    """One row's keys and values would be lent to both."""
    cache, token, hidden = before
    shared = drafter.share_cache(cache, pair[0].config)
    one_row = jax.tree.map(lambda buffer: buffer[:1], shared)
    with pytest.raises(ValueError, match=r"embedding: expected shape \(1, 24\) .* got \(2, 24\)"):
        decoding.draft(*pair, token, hidden, one_row, jax.random.key(0), draft_length=GAMMA)


# -- verify ------------------------------------------------------------------------------------------------------------


def test_verify_is_one_forward_that_writes_all(pair, before, drafts, monkeypatch):
    target, (cache, token, _) = pair[0], before
    forwards, call = [], Gemma4.__call__
    monkeypatch.setattr(Gemma4, "__call__", lambda self, *args: (forwards.append(args[0].shape), call(self, *args))[1])
    verified = decoding.verify(target, cache, token, drafts)
    assert forwards == [(2, GAMMA + 1)], "one pass over the newest token and all drafts"
    assert verified.cache.length.tolist() == (LENGTHS + GAMMA + 1).tolist()


def test_verify_says_what_single_steps_say(pair, before, drafts):
    """Row i is the target's view after [token, d1 .. dgamma][i]."""
    target, (cache, token, _) = pair[0], before
    verified = decoding.verify(target, cache, token, drafts)
    for i, column in enumerate([token, *drafts.T]):
        out = gemma4.forward(target, column[:, None], cache)
        cache = out.cache
        np.testing.assert_allclose(verified.logits[:, i], out.logits[:, 0], rtol=0, atol=1e-4, err_msg=f"row {i}")
        np.testing.assert_allclose(verified.hidden[:, i], out.hidden[:, 0], rtol=0, atol=1e-4, err_msg=f"row {i}")


def test_verify_refuses_ids_that_the_target_does_not_have(pair, before, drafts):
    cache, token, _ = before
    with pytest.raises(ValueError, match="token id 64 is out of range"):
        decoding.verify(pair[0], cache, token, drafts.at[1, 2].set(64))


# -- accept ------------------------------------------------------------------------------------------------------------


def test_accept_by_hand():
    """p/q is 0.5 and then 2: the first draft stays if its number is below 0.5, the second always; then what is left over."""
    q = jnp.array([[[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]]])
    p = jnp.array([[[0.3, 0.4, 0.3], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]])
    tokens = jnp.array([[1, 1]])

    def of(*uniforms):
        result = decide(p, tokens, q, jnp.array([uniforms]))
        return int(result.num_accepted[0]), int(result.next_token[0])

    assert of(0.51, 0.0, 0.2) == (0, 0), "rejected; left over 0.1 and 0.3 at tokens 0 and 2, and 0.2 < 0.25"
    assert of(0.51, 0.0, 0.3) == (0, 2), "rejected; 0.3 > 0.25"
    assert of(0.49, 0.99, 0.4) == (2, 0), "all accepted: from the last law itself"
    assert of(0.49, 0.99, 0.6) == (2, 1)


def test_accept_block_by_hand():
    """A first draft of weight 0.5, and a second one that makes up for it, or does not."""
    q = jnp.array([[[0.2, 0.8, 0.0], [0.5, 0.3, 0.2]]])
    p = jnp.array([[[0.3, 0.4, 0.3], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]])

    def of(drafts, *uniforms):
        result = decide_block(p, jnp.array([drafts]), q, jnp.array([uniforms]))
        return int(result.num_accepted[0]), int(result.next_token[0])

    assert of([1, 1], 0.99, 0.99, 0.4) == (2, 0), (
        "0.4/0.8 x 0.6/0.3 = 1, whatever the numbers; then from the last law itself"
    )
    # Drafts [1, 0] weigh 0.5 and 0.5 x 0.1/0.5 = 0.1; after the first nothing is over: 0.5 p - q is nowhere positive.
    assert of([1, 0], 0.0, 0.09, 0.6) == (2, 1), "a run of two, where one alone is never accepted"
    assert of([1, 0], 0.0, 0.11, 0.2) == (0, 0), "neither; left over 0.1 and 0.3 at tokens 0 and 2, and 0.2 < 0.25"
    # With q = 0.1 at token 1, 0.5 p - q leaves 0.2 there: a run of one is accepted below 0.2 / (0.2 + 1 - 0.5) = 0.286.
    q = q.at[0, 1].set(jnp.array([0.5, 0.1, 0.4]))
    assert of([1, 0], 0.28, 0.11, 0.5) == (1, 1) and of([1, 0], 0.29, 0.11, 0.5) == (0, 2)


def test_residual_of_laws_that_rounding_alone_parts():
    """Row by row: where nothing is left over, the target's law stands in, and an impossible token stays impossible."""
    p = jnp.array([[0.0, 0.3, np.nextafter(np.float32(0.7), np.float32(0))], [0.5, 0.5, 0.0]])
    q = jnp.array([[0.0, 0.3, 0.7], [0.25, 0.75, 0.0]])
    np.testing.assert_array_equal(residual(p, q), [p[0], [0.25, 0.0, 0.0]])


each_rule = pytest.mark.parametrize("accept", [decoding.accept, decoding.accept_block])


@each_rule
def test_accept_refuses_shapes_that_do_not_fit(accept):
    laws, drafts = lambda *shape: jnp.full((*shape, 3), 1 / 3), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"accept: .*target's rows .* for 2 drafts in 1 rows, got \(1, 2, 3\)"):
        accept(laws(1, 2), drafts, laws(1, 2), jax.random.key(0))


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 3), (1, 2, 4)], ids=str)
def test_accept_refuses_laws_of_other_drafts(shape):
    """Which the annotations of `accept` refuse, too, but in tests alone."""
    with pytest.raises(ValueError, match="accept: expected draft_probs .* for 2 drafts in 1 rows over 3 tokens"):
        check_shapes(jnp.zeros((1, 3, 3)), jnp.zeros((1, 2), jnp.int32), jnp.zeros(shape))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_accept_greedy_refuses_shapes_that_do_not_fit(rows):
    """One row of logits a draft and one more; with fewer or more, comparing would broadcast."""
    with pytest.raises(ValueError, match=r"accept: .* for 3 drafts in 1 rows, got \(1, \d, 9\)"):
        decoding.accept_greedy(jnp.zeros((1, rows, 9)), jnp.zeros((1, 3), jnp.int32))


@pytest.mark.parametrize("tokens", [[[1, 2]], np.array([1, 2]), np.array([[1.0, 2.0]])], ids=["list", "row", "float"])
def test_accept_refuses_what_is_no_block_of_tokens(tokens):
    check = inspect.unwrap(check_shapes)  # as users have it, without the types that are checked in tests
    with pytest.raises(ValueError, match=r"accept: expected draft_tokens as an array of whole numbers \[b, gamma\]"):
        check(jnp.full((1, 3, 3), 1 / 3), tokens)


@each_rule
def test_a_round_without_drafts_is_a_step(accept):
    """The next token is drawn from the target's law."""
    law_of_one = jax.nn.one_hot(jnp.array([[2], [0]]), 3)
    none = jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0, 3))
    num_accepted, next_token = accept(law_of_one, *none, jax.random.key(0))
    assert (num_accepted.tolist(), next_token.tolist()) == ([0, 0], [2, 0])


# -- emit --------------------------------------------------------------------------------------------------------------


def test_emit_puts_the_targets_token_behind_the_accepted_drafts():
    drafts = jnp.array([[3, 5, 8], [13, 21, 34], [1, 2, 4]])
    tokens = with_next_token(drafts, jnp.array([0, 2, 3]), jnp.array([50, 51, 52]))
    emitted = [tokens[0, :1], tokens[1, :3], tokens[2, :4]]
    assert [row.tolist() for row in emitted] == [[50], [13, 21, 51], [1, 2, 4, 52]]


@pytest.mark.parametrize(
    "tokens, num_tokens, room, done, expected",
    [
        ([5, 6, 7, 8], 3, 9, False, (3, False)),
        ([5, EOS, 7, 8], 3, 9, False, (2, True)),
        ([EOS, 6, 7, 8], 1, 9, False, (1, True)),
        ([5, 6, 7, EOS], 4, 9, False, (4, True)),
        ([5, OTHER_EOS, EOS, 8], 4, 9, False, (2, True)),
        ([5, 6, EOS, 8], 2, 9, False, (2, False)),  # among the rejected
        ([5, 6, 7, 8], 4, 2, False, (2, True)),
        ([5, 6, 7, 8], 4, 4, False, (4, True)),
        ([5, 6, EOS, 8], 4, 2, False, (2, True)),  # the budget ends first
        ([5, EOS, 7, 8], 4, 3, False, (2, True)),  # the text ends first
        ([5, EOS, 7, 8], 4, 9, True, (0, True)),  # a row that was done
        ([5, 6, 7, 8], 4, 0, True, (0, True)),
    ],
)
def test_emit_ends_a_run_after_its_first_eos_and_where_the_budget_does(tokens, num_tokens, room, done, expected):
    """Beside a row of another fate: rows are independent."""
    other = [5, 6, 7, 8], 4, 9, False
    num_emitted, now_done = count_emitted(
        *map(jnp.array, zip((tokens, num_tokens, room, done), other, strict=True)), (EOS, OTHER_EOS)
    )
    assert (int(num_emitted[0]), bool(now_done[0])) == expected
    assert (int(num_emitted[1]), bool(now_done[1])) == (4, False)


def test_emit_takes_what_the_next_round_begins_from():
    """The row of the last emitted token; a row that stood still keeps what it had."""
    rows, before = jnp.arange(18.0).reshape(3, 3, 2), jnp.full((3, 2), -1.0)
    assert row_at(rows, jnp.array([2, -1, 0]), before).tolist() == [[4.0, 5.0], [-1.0, -1.0], [12.0, 13.0]]


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_rollback_moves_the_length_and_nothing_else(pair, before, drafts):
    cache, token, _ = before
    verified = decoding.verify(pair[0], cache, token, drafts)
    after = decoding.rollback(verified.cache, cache.length, jnp.array([1, GAMMA + 1]))
    assert after.length.tolist() == [LENGTHS[0] + 1, LENGTHS[1] + GAMMA + 1]
    assert all(ours is theirs for ours, theirs in zip(after.layers, verified.cache.layers, strict=True))
    rollback = inspect.unwrap(decoding.rollback)  # without the types that are checked in tests
    assert rollback(cache, [3, 2], [1, 4]).length.tolist() == [4, 6], "lists are added, not joined"
