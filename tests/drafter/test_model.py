"""The draft step against NumPy in float64, row by row of a ragged batch, in both conventions of position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import drafter
import tests.numpy_reference as reference
from drafter import Drafter
from gemma4.checkpoints.params import named_params, shape_only, with_params
from gemma4.config import FULL, SLIDING
from tests.drafter.draft_steps import LENGTHS, assert_near, assert_same_logits, case, our_steps
from tests.models import CLUSTERED, TINY, TINY_DRAFTERS, WINDOW, random_drafter


@pytest.mark.parametrize("convention", drafter.config.CONVENTIONS)
@pytest.mark.parametrize("layout", TINY)
def test_steps_equal_numpy(layout, convention):
    """Both conventions against NumPy in float64, which gets the position and the visible K/V explicitly (2e-5).

    For "vllm" this is the only check.  That for "transformers" shows that the NumPy step is right.
    """
    this = case(layout)
    config = dataclasses.replace(this.draft_model.config, convention=convention)
    draft_model = with_params(shape_only(Drafter, config, jnp.float32), named_params(this.draft_model))
    ours = our_steps(this._replace(draft_model=draft_model))
    for row, n in enumerate(LENGTHS):
        position, window = {"transformers": (n, WINDOW + 1), "vllm": (n - 1, WINDOW)}[convention]
        first = {SLIDING: max(0, n - window), FULL: 0}
        visible = {kind: [np.float64(x)[:, first[kind] :] for x in kv] for kind, kv in this.kv_of(row).items()}
        hidden = np.float64(this.hidden[row])
        for step, (logits, chained, _) in enumerate(ours):
            embedding = np.float64(this.embedding(step)[row])
            reference, hidden = numpy_step(draft_model, embedding, hidden, visible, position)
            what = f"{n} tokens, step {step + 1}"
            assert_same_logits(logits[row], reference, layout in CLUSTERED, what)
            assert_near(chained[row], hidden, f"{what}: chained hidden")


def numpy_step(draft_model: Drafter, embedding, hidden, visible: dict, position: int) -> tuple[np.ndarray, np.ndarray]:
    """One draft step of one row: `visible` holds just the keys and values that each layer type sees."""
    config, text = draft_model.config, draft_model.config.text
    weights, eps = reference.weights_of(draft_model), text.rms_norm_eps
    x = np.concatenate([embedding, hidden]) @ weights["pre_projection.weight"]
    for i, kind in enumerate(text.layer_types):
        layer = reference.part(weights, f"layers.{i}")
        y = reference.rms_norm(x, layer["input_layernorm.weight"], eps)
        attended = numpy_attention(draft_model, i, reference.part(layer, "self_attn"), y, *visible[kind], position)
        x = x + reference.rms_norm(attended, layer["post_attention_layernorm.weight"], eps)
        y = reference.rms_norm(x, layer["pre_feedforward_layernorm.weight"], eps)
        update = reference.mlp(reference.part(layer, "mlp"), y)
        x = (x + reference.rms_norm(update, layer["post_feedforward_layernorm.weight"], eps)) * layer["layer_scalar"]
    y = reference.rms_norm(x, weights["norm.weight"], eps)
    logits = weights["embed_tokens.weight"] @ y
    if config.use_ordered_embeddings:
        best = np.argsort(-(y @ weights["masked_embedding.centroids.weight"]))[: config.centroid_intermediate_top_k]
        members = np.int64(weights["masked_embedding.token_ordering"]).reshape(config.num_centroids, -1)[best]
        others = np.setdiff1d(np.arange(len(logits)), members)
        logits[others] = logits.min() - 1
    return logits, y @ weights["post_projection.weight"]


def numpy_attention(draft_model, layer: int, weights, x, keys, values, position: int) -> np.ndarray:
    """Queries of one token, at `position`, over all the keys that are given."""
    text = draft_model.config.text
    head_dim, theta, factor = reference.rope_of(text, layer)
    queries = (x @ weights["q_proj.weight"]).reshape(-1, head_dim)
    queries = reference.rms_norm(queries, weights["q_norm.weight"], text.rms_norm_eps)
    frequencies = reference.rope_frequencies(head_dim, theta, factor)
    outs = []
    for head, query in enumerate(queries):
        kv_head = head * len(keys) // len(queries)
        probs = reference.softmax(keys[kv_head] @ reference.rotate(query, position, frequencies))
        outs.append(probs @ values[kv_head])
    return np.concatenate(outs) @ weights["o_proj.weight"]


@pytest.mark.parametrize("layout", ["E4B", "31B"])
def test_each_row_of_a_ragged_batch_is_its_own_batch(layout):
    """Rows of one batch, each of another length, against the same rows alone: within 1e-5."""
    this = case(layout)
    together = our_steps(this)
    for row in range(len(LENGTHS)):
        for step, (logits, chained, _) in enumerate(our_steps(this.row(row))):
            what = f"row {row}, step {step + 1}"
            finite = np.isfinite(logits[0])
            np.testing.assert_array_equal(np.isfinite(together[step][0][row]), finite, err_msg=what)
            assert_near(together[step][0][row][finite], logits[0][finite], what, tolerance=1e-5)
            assert_near(together[step][1][row], chained[0], what, tolerance=1e-5)


@pytest.mark.parametrize("layout", ["E2B", "12B"])
def test_the_greedy_token_is_the_argmax_of_the_logits(layout):
    """For either kind of head, without all the logits of the clustered one."""
    draft_model = random_drafter(TINY_DRAFTERS[layout], seed=4)
    normed = reference.normal(32, draft_model.config.text.hidden_size)
    best, logits = jax.jit(lambda model, normed: (model.argmax(normed), model.logits(normed)))(draft_model, normed)
    np.testing.assert_array_equal(best, np.argmax(logits, axis=-1))
