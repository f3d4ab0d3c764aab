"""A round as one program: it lowers for every platform, and its operations say which stage and which layer they belong to."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import decoding
from decoding import Acceptance, Options, Sampling
from decoding.fast import for_backend, round_loop, with_kernels
from decoding.round import accept_drafts, speculative_round, speculative_step
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, small_drafter, small_target

GREEDY = Options(3)
SAMPLED = Options(3, Sampling(0.9, top_k=9, top_p=0.95), Sampling(0.9), eos_ids=(1,), acceptance="block")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@functools.cache
def arguments(layout: str):
    """Models, and the shapes of a state: a round is only lowered here, and not run."""
    target = random_target(TINY[layout])
    state = jax.eval_shape(lambda: decoding.prefill(target, [[2, 7, 5], [2, 3]], GREEDY, max_new_tokens=9))
    return target, random_drafter(TINY_DRAFTERS[layout]), state


each_options = pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
each_layout = pytest.mark.parametrize("layout", ["E2B", "26B-A4B"])


def check_lowers(models_and_state: tuple, options: Options, *platforms: str) -> None:
    """Each operation has a lowering for the platform, which needs no such device.  (To compile and to run does.)"""
    step = jax.jit(functools.partial(speculative_round, options=options))
    program = export.export(step, platforms=platforms)(*models_and_state)
    assert program.platforms == platforms
    assert program.out_avals == tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(models_and_state[-1]))


@each_options
@each_layout
def test_a_plain_round_lowers_for_every_platform(layout, options):
    check_lowers(arguments(layout), options, *PLATFORMS)


@each_options
@pytest.mark.parametrize("platform", PLATFORMS)
@each_layout
def test_a_round_of_twins_lowers_for_their_platform(layout, platform, options):
    """With the twins and the functions over the vocabulary that `generate` would choose there."""
    target, draft_model, state = arguments(layout)
    backend = "gpu" if platform in ("cuda", "rocm") else platform
    models = for_backend(target, backend), for_backend(draft_model, backend)
    check_lowers((*models, state), with_kernels(options), platform)


def test_a_profile_names_stages_and_layers():
    """In the program before it is compiled: one from the compilation cache may have the names of an older version."""
    program = speculative_step.lower(*arguments("E2B"), SAMPLED).as_text(debug_info=True)
    names = re.findall(r'loc\("([^"]*)"', program)
    in_verify = [name for name in names if "verify/" in name]
    others = [name for name in names if "verify/" not in name]  # the body of the drafter's scan names its layers alone
    for layer in range(TINY["E2B"].num_hidden_layers):
        assert any(f"verify/layers.{layer}/" in name for name in in_verify)
    for layer in range(TINY_DRAFTERS["E2B"].text.num_hidden_layers):
        assert any(f"layers.{layer}/" in name for name in others)
    for stage in ("accept", "emit"):
        assert any(f"{stage}/" in name for name in others)


def test_the_loop_does_not_copy_the_cache():
    """A round writes it in place."""
    target, draft_model, state = arguments("E2B")
    loop = jax.jit(round_loop._rounds(speculative_round, 16), static_argnums=3, donate_argnums=2)
    models = for_backend(target), for_backend(draft_model)
    program = loop.lower(*models, (state, np.int32(16)), with_kernels(GREEDY)).compile()
    shapes = {f"f32[{','.join(map(str, buffer.shape))}]" for buffer in jax.tree.leaves(state.cache.layers)}
    copied = set(re.findall(r"= (f32\[[\d,]+\])\S* copy\(", program.as_text()))
    assert shapes and not copied & shapes


# -- what a round does -------------------------------------------------------------------------------------------------

PROMPTS = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]


def state_of(options: Options) -> decoding.DecodeState:
    return decoding.prefill(small_target(), PROMPTS, options, max_new_tokens=9, key=jax.random.key(3))


def test_accept_fn_decides_which_drafts_stay():
    """It receives the target's logits and the draft; here it accepts one draft in the first row and all in the second."""
    received = []

    def accept_fn(logits, drafted, options, key) -> Acceptance:
        received.append((logits.shape, drafted.tokens.shape, drafted.probs.shape, options))
        return Acceptance(jnp.array([1, 3]), jnp.array([15, 14]))

    after = jax.jit(functools.partial(speculative_round, options=GREEDY, accept_fn=accept_fn))(
        small_target(), small_drafter(), state_of(GREEDY)
    )
    assert received == [((2, 4, 16), (2, 3), (2, 3, 16), GREEDY)]
    drafts = after.last.draft_tokens.tolist()
    assert after.last.tokens[0, :2].tolist() == [drafts[0][0], 15] and after.last.tokens[1].tolist() == [*drafts[1], 14]
    assert after.last.num_accepted.tolist() == [1, 3] and after.last.num_emitted.tolist() == [2, 4]
    assert after.token.tolist() == [15, 14]
    assert after.cache.length.tolist() == [3 + 2, 7 + 4], "the next token is not in the cache yet"


@pytest.mark.parametrize(
    "options, expected",
    [
        (Options(3), "accept_greedy"),
        (Options(3, acceptance="block"), "accept_greedy"),
        (Options(3, Sampling(0.9, top_k=9)), "accept"),
        (Options(3, Sampling(0.9, top_k=9), acceptance="block"), "accept_block"),
    ],
    ids=["greedy", "greedy, block", "token", "block"],
)
def test_acceptance_by_the_options(options, expected):
    """Under the distribution that the text is drawn from: with temperature, top-k and top-p."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    logits = jnp.asarray(rng.normal(0, 2, (64, 4, 16)), jnp.float32)
    probs = jnp.asarray(rng.dirichlet(np.ones(16), (64, 3)), jnp.float32)
    drafted = decoding.Draft(probs.argmax(axis=-1).astype(jnp.int32), probs)
    target_probs = decoding.sampling.token_probs(logits, Sampling(0.9, top_k=9))
    results = {
        "accept_greedy": decoding.accept_greedy(logits, drafted.tokens),
        "accept": decoding.accept(target_probs, *drafted, key),
        "accept_block": decoding.accept_block(target_probs, *drafted, key),
    }
    counts = {name: result.num_accepted.tolist() for name, result in results.items()}
    assert len({str(count) for count in counts.values()}) == 3, "data that tells the methods apart"
    accepted = accept_drafts(logits, drafted, options, key)
    jax.tree.map(np.testing.assert_array_equal, accepted, results[expected])


def test_the_random_numbers_of_a_round_come_from_different_keys():
    """Those of the draft, those of acceptance, and those of the next round."""
    options = Options(3, Sampling(2.0))

    @jax.jit
    def keys_of_a_round(state: decoding.DecodeState) -> list[jax.Array]:
        keys = [state.key, jax.random.split(state.key, 3)[1]]  # the second is that of the draft

        def accept_fn(logits, drafted, options, key) -> Acceptance:
            keys.append(key)
            return accept_drafts(logits, drafted, options, key)

        after = speculative_round(small_target(), small_drafter(), state, options, accept_fn)
        return [*keys, after.key]

    used = map(jax.random.key_data, keys_of_a_round(state_of(options)))
    assert len({tuple(key.tolist()) for key in used}) == 4


def test_a_step_reuses_the_cache_that_it_is_given():
    """Otherwise there would be two of them."""
    state = state_of(GREEDY)
    speculative_step(small_target(), small_drafter(), state, GREEDY)
    assert all(buffer.is_deleted() for buffer in jax.tree.leaves(state.cache.layers))
