"""Training a drafter: an anchor sees what the drafter sees in a round, and nothing from later.

float32; "equal" is within 2e-5 of the largest magnitude unless said otherwise.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import decoding
import drafter
import gemma4
from decoding import Options
from drafter import Drafter, share_cache
from drafter.config import CONVENTIONS
from drafter.training import Teacher, draft_loss, expected_acceptance, init_drafter, teach, trainable, unroll
from gemma4.checkpoints.params import named_params, with_params
from gemma4.config import FULL, SLIDING
from gemma4.training import Schedule, make_optimizer
from tests.models import SMALL_WINDOW as WINDOW
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, small_drafter, small_target

BATCH, TIME, STEPS = 2, 2 * WINDOW + 5, 4
ANCHORS = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, TIME - STEPS)


@functools.cache
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (BATCH, TIME))


unroll_jit = jax.jit(unroll, static_argnums=2)
teach_jit = jax.jit(teach)


@functools.cache
def teacher() -> Teacher:
    return teach_jit(small_target(), jnp.asarray(tokens()))


def assert_near(ours, reference, what: str) -> None:
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5 * np.abs(reference).max(), err_msg=what)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_anchor_is_a_round(convention):
    """Every step at anchor t has the logits of `drafter.forward` in a round after a prefill of t tokens.

    The round reads a ragged batch of prefixes through rings, and gets the text's tokens and its own hidden states.
    The distribution to learn at step k is the target's after t + k tokens.
    """
    target, draft_model = small_target(), small_drafter(convention=convention)
    steps = unroll_jit(draft_model, teacher(), STEPS)
    expected_probs = jax.nn.softmax(gemma4.forward(target, tokens()).logits, axis=-1)
    prompts = [row[:anchor].tolist() for row in tokens() for anchor in ANCHORS]
    state = decoding.prefill(target, prompts, Options(STEPS), max_new_tokens=1)
    shared, hidden = share_cache(state.cache, target.config), state.hidden
    for number, (normed, probs) in enumerate(steps, start=1):
        assert normed.shape[:2] == probs.shape[:2] == (BATCH, TIME - STEPS)
        fed = jnp.array([row[anchor + number - 1] for row in tokens() for anchor in ANCHORS])
        logits, hidden = drafter.forward(draft_model, target.embed_tokens(fed), hidden, shared)
        at_anchors = np.array(ANCHORS) - 1
        what = f"{convention}, step {number}"
        assert_near(draft_model.dense_logits(normed[:, at_anchors]).reshape(logits.shape), logits, what)
        assert_near(probs[:, at_anchors], expected_probs[:, np.array(ANCHORS) + number - 1], what)


def test_later_tokens_change_nothing_earlier():
    """With the text changed from token 9 on, step k of anchor t is the same, bit for bit, as long as t + k - 1 < 9.

    It differs as soon as its input is token 9.  So does what it learns, the target's distribution of the next token.
    """
    changed = tokens().copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % 16
    other = teach_jit(small_target(), jnp.asarray(changed))
    steps = unroll_jit(small_drafter(), teacher(), STEPS), unroll_jit(small_drafter(), other, STEPS)
    for number, (ours, theirs) in enumerate(zip(*steps, strict=True), start=1):
        first = 9 - number  # index of the first anchor (t = index + 1) whose input in this step is token 9
        for one, another in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one[:, :first], another[:, :first])
            assert (one[:, first] != another[:, first]).any(axis=-1).all()


def test_an_anchor_sees_the_positions_before_it_alone():
    """With 1e6 as K/V from position 7 on, anchors up to 7 are the same, bit for bit, and later ones differ."""
    poisoned = jax.tree.map(lambda x: x.at[:, :, 7:].set(1e6), teacher().donors)
    clean = unroll_jit(small_drafter(), teacher(), STEPS)
    dirty = unroll_jit(small_drafter(), teacher()._replace(donors=poisoned), STEPS)
    for (ours, _), (reference, _) in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(ours[:, :7], reference[:, :7])
        assert (ours[:, 7:] != reference[:, 7:]).any(axis=-1).all()


# -- learning ----------------------------------------------------------------------------------------------------------


@functools.cache
def clustered_pair() -> tuple[Drafter, Teacher]:
    text = jnp.asarray(np.random.default_rng(1).integers(0, 64, (BATCH, TIME)))
    return random_drafter(TINY_DRAFTERS["E2B"]), teach_jit(random_target(TINY["E2B"]), text)


@functools.partial(jax.jit, static_argnums=3)
def loss_and_gradient(params, draft_model, teacher, steps):
    return jax.value_and_grad(lambda params: draft_loss(with_params(draft_model, params), teacher, steps))(params)


@pytest.mark.slow
def test_a_step_of_the_optimizer_leaves_the_token_ordering_alone():
    """Three steps: the ordering stays, an integer permutation; every weight moves; the loss falls."""
    draft_model, teacher = clustered_pair()
    before, params = named_params(draft_model), trainable(draft_model)
    ordering = "masked_embedding.token_ordering"
    assert set(before) - set(params) == {ordering}
    of_flax = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(draft_model, nnx.Param))}
    assert of_flax == set(params), "the parameters that an optimizer of Flax takes"
    optimizer, losses = make_optimizer(Schedule(steps=10, warmup=1), params), []

    @jax.jit
    def step(params, state):
        loss, gradient = loss_and_gradient(params, draft_model, teacher, 2)
        updates, state = optimizer.update(gradient, state, params)
        return loss, optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(3):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    after = named_params(with_params(draft_model, params))
    np.testing.assert_array_equal(after[ordering], before[ordering])
    assert after[ordering].dtype == jnp.int32
    assert all((after[name] != before[name]).any() for name in params)
    assert losses[-1] < losses[0]


def test_the_loss_of_the_centroids_trains_nothing_else():
    """A clustered head adds a gradient of the centroids, and changes no other (1e-6 of the largest)."""
    draft_model, teacher = clustered_pair()
    dense_config = dataclasses.replace(draft_model.config, use_ordered_embeddings=False)
    dense = with_params(random_drafter(dense_config), named_params(draft_model))
    centroids = "masked_embedding.centroids.weight"
    _, ours = loss_and_gradient(trainable(draft_model), draft_model, teacher, 2)
    _, reference = loss_and_gradient(trainable(dense), dense, teacher, 2)
    assert set(ours) - set(reference) == {centroids} and np.abs(ours[centroids]).max() > 0
    for name, gradient in reference.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=1e-6 * np.abs(gradient).max(), err_msg=name)


def test_the_loss_is_the_mean_cross_entropy():
    """From `unroll`, by hand in float64, dense head: nats per anchor and step (relative error 1e-6)."""
    draft_model, by_hand = small_drafter(), []
    for normed, probs in unroll_jit(draft_model, teacher(), 2):
        logits = np.float64(draft_model.dense_logits(normed))
        by_hand.append(
            -(np.float64(probs) * (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))).sum(axis=-1)
        )
    assert float(jax.jit(draft_loss, static_argnums=2)(draft_model, teacher(), 2)) == pytest.approx(
        np.mean(by_hand), rel=1e-6
    )


def test_the_expected_acceptance_is_that_of_the_rule():
    """Of each anchor and step, over the uniform number: draft x is drawn from q, and accepted with probability min(1, p/q)."""
    draft_model = small_drafter()
    found = jax.jit(expected_acceptance, static_argnums=2)(draft_model, teacher(), STEPS)
    for step, (normed, p) in enumerate(unroll_jit(draft_model, teacher(), STEPS)):
        q = np.asarray(jax.nn.softmax(draft_model.dense_logits(normed), axis=-1), np.float64)
        accepted = (q * np.minimum(1, np.asarray(p, np.float64) / q)).sum(axis=-1)
        assert 0.01 < accepted.mean() < 0.99
        np.testing.assert_allclose(found[step], accepted.mean(), rtol=1e-5)


@pytest.mark.parametrize("steps", [-1, 0, TIME, TIME + 1])
def test_steps_that_leave_no_anchor_are_refused(steps):
    """One step fewer than the text has tokens leaves one."""
    for function in (unroll, draft_loss):
        with pytest.raises(ValueError, match=f"steps: expected 1 or more, .* text's {TIME} tokens, got {steps}"):
            function(small_drafter(), teacher(), steps)
    shapes = jax.eval_shape(lambda: unroll(small_drafter(), teacher(), TIME - 1))
    assert {normed.shape[:2] for normed, _ in shapes} == {(BATCH, 1)}


def test_centroids_learn_the_probability_of_each_cluster():
    """What a clustered head adds to the loss of a dense one: from `unroll`, by hand in float64 (relative error 1e-4)."""
    draft_model, teacher = clustered_pair()
    dense_config = dataclasses.replace(draft_model.config, use_ordered_embeddings=False)
    dense, loss = (
        with_params(random_drafter(dense_config), named_params(draft_model)),
        jax.jit(draft_loss, static_argnums=2),
    )
    centroids, ordering, _ = draft_model.masked_embedding.clusters()
    members, by_hand = np.asarray(ordering).reshape(len(centroids), -1), []
    for normed, probs in unroll_jit(draft_model, teacher, 2):
        scores = np.float64(normed) @ np.float64(centroids).T
        log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        by_hand.append(-(np.float64(probs)[..., members].sum(axis=-1) * log_probs).sum(axis=-1))
    added = float(loss(draft_model, teacher, 2)) - float(loss(dense, teacher, 2))
    assert added == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_a_new_drafter_starts_from_the_targets_head():
    """Its table is the target's head (table times final norm), projected onto its principal components; with clusters.

    Dot products of table rows are as close to those of the target's head as any projection to this width can make them:
    what is lost is the tail of the singular values (relative error 1e-4).
    """
    target, config = random_target(TINY["E2B"]), TINY_DRAFTERS["E2B"]
    draft_model = init_drafter(config, target)
    rows = np.float64(target.embed_tokens.weight[...]) * np.float64(target.norm.weight[...])
    table = np.float64(draft_model.embed_tokens.weight[...])
    tail = np.linalg.svd(rows, compute_uv=False)[config.text.hidden_size :] ** 2
    assert np.linalg.norm(rows @ rows.T - table @ table.T) == pytest.approx(np.linalg.norm(tail), rel=1e-4)
    centroids, ordering, _ = draft_model.masked_embedding.clusters()
    np.testing.assert_array_equal(np.sort(ordering), np.arange(config.text.vocab_size))
    members = table[np.asarray(ordering).reshape(config.num_centroids, -1)]
    np.testing.assert_allclose(centroids, members.mean(axis=1), rtol=0, atol=1e-5)


# -- drafters that do not fit --------------------------------------------------------------------------------------------

TARGET = TINY["12B"]
MISFITS = {
    "backbone_hidden_size": dict(hidden_size=32),
    "vocab_size": dict(vocab_size=128, vocab_size_per_layer_input=128),
    "sliding_window": dict(sliding_window=9),
    "sliding_attention head_dim": dict(head_dim=6),
    "full_attention head_dim": dict(global_head_dim=20),
    "sliding_attention KV heads": dict(num_key_value_heads=4),
    "full_attention KV heads": dict(num_global_key_value_heads=2),
    "sliding_attention RoPE": dict(sliding_rope_theta=20_000.0),
    "full_attention RoPE": dict(partial_rotary_factor=0.5),
    "no sliding_attention layer": dict(layer_types=(FULL, FULL)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_drafter_that_does_not_fit_is_refused(name):
    """One error that names what differs, from `check_fits` and from `init_drafter`."""
    other = dataclasses.replace(TARGET, **MISFITS[name])
    config = TINY_DRAFTERS["12B"]
    config.check_fits(TARGET)
    for attempt in (lambda: config.check_fits(other), lambda: init_drafter(config, random_target(other))):
        with pytest.raises(ValueError, match=f"do not fit.*{name}"):
            attempt()


def test_generate_refuses_a_drafter_that_does_not_fit():
    other = random_target(dataclasses.replace(TARGET, sliding_window=9))
    with pytest.raises(ValueError, match="do not fit.*sliding_window: drafter 8, target 9"):
        decoding.generate(other, random_drafter(TINY_DRAFTERS["12B"]), [1, 2, 3], max_new_tokens=2)


def test_layers_of_one_type_are_enough():
    """A drafter of full layers alone fits a target that also has sliding ones."""
    text = dataclasses.replace(TINY_DRAFTERS["12B"].text, layer_types=(FULL,), num_kv_shared_layers=1)
    config = dataclasses.replace(TINY_DRAFTERS["12B"], text=text)
    config.check_fits(TARGET)
    assert set(TARGET.donors) == {SLIDING, FULL}
    out = decoding.generate(random_target(TARGET), random_drafter(config), [1, 2, 3], max_new_tokens=4, draft_length=2)
    plain = decoding.generate_autoregressive(random_target(TARGET), [1, 2, 3], max_new_tokens=4)
    np.testing.assert_array_equal(out.tokens[0], plain.tokens[0])
