"""Single draft steps against transformers 5.22.2, live, and against NumPy in float64, on identical inputs.

Whole rounds are not compared: after a partial acceptance transformers' own loop shows its drafter one rejected K/V
position, because `candidate_generator.py` truncates K/V to the length of the text, whose newest token has none yet.  Here its
drafter gets the right ones.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.typing import DTypeLike
from transformers import Gemma4AssistantForCausalLM

import drafter
import gemma4
from decoding.oracle.adapters.hf_taps import drafter_taps
from drafter import Drafter, SharedCache, share_cache
from gemma4 import Gemma4, init_cache
from gemma4.cache import LayerKV
from gemma4.checkpoints.params import named_params, shape_only, with_params
from gemma4.config import FULL, SLIDING
from tests.models import CLUSTERED, TINY, TINY_DRAFTERS, VOCAB, WINDOW, random_drafter, random_target, random_tokens
from tests.parity.bfloat16 import round_everywhere, share_equal
from tests.parity.torch_models import torch_drafter, torch_target

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)  # committed tokens, one of these a row
STEPS = 4
CHUNK = 4  # rings of 13 slots, in which the longest row wraps
TOLERANCE = 2e-5  # of the largest magnitude of what is compared; for every quantity in this file


class Case(NamedTuple):
    target: Gemma4
    draft_model: Drafter
    shared: SharedCache  # a row for each of LENGTHS; the longest wraps around its ring
    hidden: np.ndarray  # [row, d]: the target's, at the last committed token
    prompts: np.ndarray
    drafted: np.ndarray  # [row, STEPS]: the input token of each step

    def embedding(self, step: int) -> jnp.ndarray:
        return self.target.embed_tokens(jnp.asarray(self.drafted[:, step]))

    def row(self, index: int) -> "Case":
        """The same for one row alone."""
        alone = slice(index, index + 1)
        donors = {kind: LayerKV(kv.key[alone], kv.value[alone]) for kind, kv in self.shared.donors.items()}
        shared = SharedCache(donors, self.shared.length[alone])
        return self._replace(shared=shared, hidden=self.hidden[alone], drafted=self.drafted[alone])

    def kv_of(self, row: int) -> dict[str, list[np.ndarray]]:
        """Keys and values of one row by position, [k, n, h]; zeros at positions that a ring no longer holds."""
        n, out = LENGTHS[row], {}
        for kind, kv in self.shared.donors.items():
            held = np.arange(max(0, n - WINDOW - 1) if kind == SLIDING else 0, n)
            out[kind] = [np.zeros((x.shape[1], n, x.shape[3]), np.float32) for x in kv]
            for by_position, x in zip(out[kind], kv, strict=True):
                by_position[:, held] = np.asarray(x)[row][:, held % kv.capacity]
        return out


@functools.cache
def case(layout: str, dtype: DTypeLike = jnp.float32) -> Case:
    target, draft_model = (
        random_target(TINY[layout], 3, dtype),
        random_drafter(TINY_DRAFTERS[layout], seed=4, dtype=dtype),
    )
    batch, longest, lengths = len(LENGTHS), -(-max(LENGTHS) // CHUNK) * CHUNK, np.array(LENGTHS)
    prompts, drafted = random_tokens(batch, longest), random_tokens(batch, STEPS)
    cache, hidden = init_cache(target.config, batch, longest, chunk=CHUNK + 1, dtype=dtype), []
    for start in range(0, longest, CHUNK):
        out = gemma4.forward(target, prompts[:, start : start + CHUNK], cache)
        cache = gemma4.truncate(out.cache, jnp.clip(lengths, cache.length, cache.length + CHUNK))
        hidden.append(out.hidden)
    hidden = np.concatenate(hidden, axis=1)[np.arange(batch), lengths - 1]
    return Case(target, draft_model, share_cache(cache, target.config), hidden, prompts, drafted)


@jax.jit
def tapped_step(draft_model: Drafter, embedding, hidden, shared: SharedCache):
    """`drafter.forward`, and the values at its taps."""
    taps = {}
    record = lambda name, value: taps.setdefault(name, value)
    return *drafter.forward(draft_model, embedding, hidden, shared, tap=record), taps


def our_steps(case: Case) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """(logits, chained hidden, taps) of each step, all rows at once."""
    hidden, out = jnp.asarray(case.hidden), []
    for step in range(STEPS):
        logits, hidden, taps = tapped_step(case.draft_model, case.embedding(step), hidden, case.shared)
        out.append((np.asarray(logits), np.asarray(hidden), taps))
    return out


def torch_inputs(case: Case, row: int, dtype: torch.dtype = torch.float32) -> dict:
    """Position and K/V of one row: exactly its committed positions, in order."""
    shared = {kind: tuple(torch.tensor(x, dtype=dtype)[None] for x in kv) for kind, kv in case.kv_of(row).items()}
    return {"shared_kv_states": shared, "position_ids": torch.tensor([[LENGTHS[row]]])}


def torch_embeds(case: Case, row: int, step: int, hidden: torch.Tensor) -> torch.Tensor:
    embedding = torch.tensor(np.float32(case.embedding(step)[row]), dtype=hidden.dtype)
    return torch.cat([embedding.reshape(1, 1, -1), hidden.reshape(1, 1, -1)], dim=-1)


def assert_near(ours, reference, what: str, tolerance: float = TOLERANCE) -> None:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, what
    error, limit = np.abs(ours - reference).max(), tolerance * np.abs(reference).max()
    assert error <= limit, f"{what}: {error:.2e} apart, at most {limit:.2e} expected"


def assert_same_logits(ours: np.ndarray, reference: np.ndarray, is_clustered: bool, what: str) -> None:
    """Dense: all logits.  Clustered: the same tokens are scored, and their logits; `reference` has a fill elsewhere."""
    if is_clustered:
        scored = reference > reference.min()
        assert 0 < scored.sum() < VOCAB
        np.testing.assert_array_equal(np.isfinite(ours), scored, err_msg=f"{what}: tokens scored")
        ours, reference = ours[scored], reference[scored]
    assert_near(ours, reference, f"{what}: logits")


@pytest.mark.parametrize("layout", TINY)
def test_steps_equal_transformers(layout):
    """Logits and chained hidden of four draft steps, at every length, within 2e-5 of their largest magnitude.

    From step 2 on, each side reads its own hidden state of the step before.
    """
    this = case(layout)
    model, ours = torch_drafter(this.draft_model), our_steps(this)
    for row, n in enumerate(LENGTHS):
        hidden = torch.tensor(this.hidden[row])
        for step, (logits, chained, _) in enumerate(ours):
            with torch.no_grad():
                out = model(inputs_embeds=torch_embeds(this, row, step, hidden), **torch_inputs(this, row))
            hidden = out.last_hidden_state
            what = f"{n} tokens, step {step + 1}"
            assert_same_logits(logits[row], out.logits[0, 0].numpy(), layout in CLUSTERED, what)
            assert_near(chained[row], hidden[0, 0], f"{what}: chained hidden")


@pytest.mark.parametrize("layout", TINY)
def test_sub_steps_equal_transformers(layout):
    """The values at the taps of the first step: each within 2e-5 of its largest magnitude."""
    this = case(layout)
    model, taps = torch_drafter(this.draft_model), our_steps(this)[0][2]
    for row, n in enumerate(LENGTHS):
        seen = torch_taps(model, torch_embeds(this, row, 0, torch.tensor(this.hidden[row])), torch_inputs(this, row))
        assert len(seen) == 3 + 6 * len(model.model.layers)
        for name, value in seen.items():
            assert_near(taps[name][row].squeeze(), value.squeeze(), f"{n} tokens, {name}")


@pytest.mark.parametrize("layout", ["E2B", "31B"])
def test_a_step_in_bfloat16(layout, tmp_path):
    """Clustered and dense, at every length: taps, chosen clusters and logits are the same, bit for bit.

    Observed: every element (an AMD EPYC).  97% are required, because another processor may add in another order, and all chosen
    clusters: the scores of the last chosen one and of the next are 20 units in the last place apart.
    The oracle is loaded in bfloat16: `.to(torch.bfloat16)` would round its RoPE frequencies too.
    """
    this = case(layout, jnp.bfloat16)
    drafter.export_hf(this.draft_model, tmp_path / "hf")
    model = Gemma4AssistantForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.bfloat16, attn_implementation="eager"
    )
    step = round_everywhere(tapped_step.__wrapped__)
    logits, _, ours = step(this.draft_model, this.embedding(0), this.hidden, this.shared)
    rows = [bfloat16_step(model, this, row) for row in range(len(LENGTHS))]
    theirs = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    reference = theirs.pop("logits")
    scored = (
        reference > reference.min(axis=-1, keepdims=True)
        if layout in CLUSTERED
        else np.full_like(reference, True, bool)
    )
    np.testing.assert_array_equal(np.isfinite(logits), scored, err_msg="tokens scored")
    equal = {name: share_equal(ours[name].reshape(theirs[name].shape), theirs[name]) for name in theirs}
    equal["logits"] = share_equal(np.asarray(logits)[scored], reference[scored])
    assert min(equal.values()) >= 0.97, {name: share for name, share in equal.items() if share < 0.97}


def bfloat16_step(model, case: Case, row: int) -> dict[str, np.ndarray]:
    """The values at the taps of one row's first step, and its logits."""
    hidden = torch.tensor(np.float32(case.hidden[row]), dtype=torch.bfloat16)
    with torch.no_grad(), drafter_taps(model) as seen:
        embeds, inputs = torch_embeds(case, row, 0, hidden), torch_inputs(case, row, torch.bfloat16)
        logits = model(inputs_embeds=embeds, **inputs).logits
    return {name: value.float().squeeze().numpy() for name, value in (seen | {"logits": logits}).items()}


def torch_taps(model, embeds: torch.Tensor, inputs: dict) -> dict[str, torch.Tensor]:
    """The same quantities under the same names."""
    with torch.no_grad(), drafter_taps(model) as seen:
        model(inputs_embeds=embeds, **inputs)
    return seen


@pytest.mark.parametrize("layout", TINY)
def test_donors_are_the_layers_that_transformers_shares(layout):
    """`share_cache` returns the K/V that transformers' target passes to its drafter, position by position (2e-5)."""
    this, config = case(layout), TINY[layout]
    model = torch_target(this.target)
    for row, n in enumerate(LENGTHS):
        with torch.no_grad():
            tokens = torch.tensor(this.prompts[row : row + 1, :n])
            out = model(tokens, use_cache=False, output_hidden_states=True, return_shared_kv_states=True)
        assert_near(this.hidden[row], out.hidden_states[-1][0, -1], "hidden after the final norm")
        assert set(out.shared_kv_states) == set(this.shared.donors) == set(config.donors)
        for kind in config.donors:
            held = slice(max(0, n - WINDOW - 1) if kind == SLIDING else 0, n)
            for ours, theirs in zip(this.kv_of(row)[kind], out.shared_kv_states[kind], strict=True):
                assert_near(ours[:, held], theirs[0][:, held], f"{n} tokens, {kind}")


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
    weight = {name: np.float64(value) for name, value in named_params(draft_model).items()}

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + text.rms_norm_eps) * weight[f"{name}.weight"]

    x = np.concatenate([embedding, hidden]) @ weight["pre_projection.weight"]
    for i, kind in enumerate(text.layer_types):
        name = f"layers.{i}"
        head_dim, theta, factor = text.rope(kind)
        query = norm(x, f"{name}.input_layernorm") @ weight[f"{name}.self_attn.q_proj.weight"]
        query = norm(query.reshape(-1, head_dim), f"{name}.self_attn.q_norm")
        half = head_dim // 2
        frequency = np.where(np.arange(half) < int(factor * half), theta ** (-np.arange(half) / half), 0)
        rotated = np.exp(1j * position * frequency) * (query[:, :half] + 1j * query[:, half:])
        query = np.concatenate([rotated.real, rotated.imag], axis=-1)
        heads = []
        for head, q in enumerate(query):
            key, value = (x[head * len(x) // len(query)] for x in visible[kind])
            score = np.exp(key @ q - (key @ q).max())
            heads.append(score / score.sum() @ value)
        attended = np.concatenate(heads) @ weight[f"{name}.self_attn.o_proj.weight"]
        x = x + norm(attended, f"{name}.post_attention_layernorm")
        y = norm(x, f"{name}.pre_feedforward_layernorm")
        gate, up = y @ weight[f"{name}.mlp.gate_proj.weight"], y @ weight[f"{name}.mlp.up_proj.weight"]
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        update = gelu * up @ weight[f"{name}.mlp.down_proj.weight"]
        x = (x + norm(update, f"{name}.post_feedforward_layernorm")) * weight[f"{name}.layer_scalar"]
    y = norm(x, "norm")
    logits = weight["embed_tokens.weight"] @ y
    if config.use_ordered_embeddings:
        best = np.argsort(-(y @ weight["masked_embedding.centroids.weight"]))[: config.centroid_intermediate_top_k]
        members = np.int64(weight["masked_embedding.token_ordering"]).reshape(config.num_centroids, -1)[best]
        others = np.setdiff1d(np.arange(len(logits)), members)
        logits[others] = logits.min() - 1
    return logits, y @ weight["post_projection.weight"]


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
def test_the_greedy_token_is_the_argmax(layout):
    """`Drafter.argmax` is argmax of `Drafter.logits` and of transformers' logits, for either kind of head."""
    draft_model = random_drafter(TINY_DRAFTERS[layout], seed=4)
    model, width = torch_drafter(draft_model), draft_model.config.text.hidden_size
    normed = np.random.default_rng(0).normal(size=(32, width)).astype(np.float32)
    heads = jax.jit(lambda draft_model, normed: (draft_model.argmax(normed), draft_model.logits(normed)))
    best, logits = map(np.asarray, heads(draft_model, normed))
    with torch.no_grad():
        rows = torch.tensor(normed)[None]
        is_clustered = layout in CLUSTERED
        reference = model.masked_embedding(rows, model.lm_head.weight) if is_clustered else model.lm_head(rows)
    np.testing.assert_array_equal(best, logits.argmax(axis=-1))
    np.testing.assert_array_equal(best, reference[0].argmax(dim=-1).numpy())
