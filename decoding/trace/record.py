"""Run a generation stage by stage, and write down what each stage did: the trace that the page shows.

Each round runs twice: its stages one by one, as `decoding.round.speculative_round` has them, and then as one compiled call.
Both must do the same, so the page never shows what the program does not do.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

import gemma4
from decoding.finite import not_finite
from decoding.options import Options
from decoding.round import speculative_step
from decoding.sampling import Sampling, token_probs
from decoding.stages.accept import Acceptance, decide, uniforms_for
from decoding.stages.accept_block import decide_block, run_weights
from decoding.stages.draft import Draft, draft
from decoding.stages.emit import count_emitted, with_next_token
from decoding.stages.prefill import prefill
from decoding.stages.rollback import rollback
from decoding.stages.verify import Verification, verify
from decoding.state import DecodeState
from decoding.trace.place import draw, exact, place, residual_of
from decoding.trace.tokens import token_texts
from drafter import Drafter, SharedCache, share_cache
from drafter.clustering import best_clusters
from drafter.model import step
from gemma4 import Gemma4
from gemma4.cache import slot_positions

FORMAT = "trace/1"
ACCEPTED, REJECTED, NOT_LOOKED_AT = "accepted", "rejected", "not looked at"


class RoundsDiffer(ValueError):
    """A round run stage by stage did not do what the compiled round did: the page would show something else."""


class Stages(NamedTuple):
    """What the stages of one round returned, in their order."""

    shared: SharedCache
    drafted: Draft
    draft_uniforms: Float[Array, " gamma"]
    verified: Verification
    target_probs: Float[Array, "gamma+1 v"]
    uniforms: Float[Array, " gamma+1"]
    accepted: Acceptance
    tokens: Int[Array, "b gamma+1"]
    num_emitted: Int[Array, " b"]
    done: Bool[Array, " b"]
    length: Int[Array, " b"]


def record(
    target: Gemma4,
    draft_model: Drafter,
    tokenizer: Tokenizer | None,
    prompt: list[int],
    options: Options,
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> dict[str, Any]:
    """A trace as `schema.json` describes it, without the fields `made_by` and `times`.

    Errors: ValueError as `decoding.generate`; RoundsDiffer, which rounding alone may cause, in bfloat16 above all.
    """
    state = prefill(target, prompt, options, max_new_tokens=max_new_tokens, key=jax.random.key(seed))
    first = _first_draw(target, state, options, seed)
    ids, rounds = [int(state.token[0])], []
    while not state.done.all():
        stages = run_stages(target, draft_model, state, options)
        described = describe(target, draft_model, state, stages, options)
        state = speculative_step(target, draft_model, state, options)
        if not state.is_finite.all():
            raise not_finite(target)
        check_same(stages, state, len(rounds) + 1)
        rounds.append(described)
        ids += np.asarray(state.last.tokens[0, : int(state.last.num_emitted[0])]).tolist()
    ended_by = "eos" if ids[-1] in options.eos_ids else "budget"
    vocabulary = {*prompt, *ids, *_ids_in(rounds)}
    return {
        "format": FORMAT,
        "settings": _settings(options, max_new_tokens, seed),
        "model": _model(target, draft_model, state, vocabulary),
        "vocabulary": token_texts(tokenizer, vocabulary),
        "prompt": {"ids": list(prompt), "next": first},
        "rounds": rounds,
        "text": {"ids": ids, "string": tokenizer.decode(ids) if tokenizer else "", "ended_by": ended_by},
    }


# -- one round, stage by stage -----------------------------------------------------------------------------------------


def run_stages(target: Gemma4, draft_model: Drafter, state: DecodeState, options: Options) -> Stages:
    """`decoding.round.speculative_round`, one call a stage, with the random numbers kept."""
    _, draft_key, accept_key = jax.random.split(state.key, 3)
    shared = share_cache(state.cache, target.config)
    drafted = draft(
        target, draft_model, state.token, state.hidden, shared, draft_key,
        draft_length=options.draft_length, sampling=options.draft_sampling, kernels=options.kernels,
    )  # fmt: skip
    verified = _verify(target, state.cache, state.token, drafted.tokens)
    target_probs = _token_probs(verified.logits, options.sampling)
    uniforms = uniforms_for(drafted.tokens, accept_key)
    # For greedy decoding the target's distribution is one-hot, and the rule is the same.
    rule = decide_block if options.acceptance == "block" and not options.sampling.is_greedy else decide
    accepted = _decide(target_probs, drafted.tokens, drafted.probs, uniforms, rule=rule)
    tokens = with_next_token(drafted.tokens, accepted.num_accepted, accepted.next_token)
    room = state.budget - state.emitted
    num_emitted, done = count_emitted(tokens, accepted.num_accepted + 1, room, state.done, options.eos_ids)
    cache = rollback(verified.cache, state.cache.length, num_emitted)
    draft_uniforms = jax.random.uniform(draft_key, (options.draft_length, 1))[:, 0]
    return Stages(
        shared, drafted, draft_uniforms, verified, target_probs[0], uniforms[0],
        accepted, tokens, num_emitted, done, cache.length,
    )  # fmt: skip


_verify = jax.jit(verify)
_token_probs = jax.jit(token_probs)


@functools.partial(jax.jit, static_argnames="rule")
def _decide(p: jax.Array, tokens: jax.Array, q: jax.Array, uniforms: jax.Array, *, rule: Any) -> Acceptance:
    return rule(p, tokens, q, uniforms)


def check_same(stages: Stages, after: DecodeState, number: int) -> None:
    """Errors: RoundsDiffer unless the compiled round drafted, accepted, emitted and kept the same."""
    emitted = int(after.last.num_emitted[0])
    pairs = {
        "drafts": (stages.drafted.tokens, after.last.draft_tokens),
        "accepted drafts": (stages.accepted.num_accepted, after.last.num_accepted),
        "emitted tokens": (stages.tokens[:, :emitted], after.last.tokens[:, :emitted]),
        "number of emitted tokens": (stages.num_emitted, after.last.num_emitted),
        "end": (stages.done, after.done),
        "cache length": (stages.length, after.cache.length),
    }
    for what, (ours, theirs) in pairs.items():
        if not np.array_equal(ours, theirs):
            raise RoundsDiffer(
                f"round {number}: stage by stage the {what} are {np.asarray(ours).tolist()}, in one compiled call "
                f"{np.asarray(theirs).tolist()}: rounding decided; record in float32, or with another --seed"
            )


# -- what the trace says of it -----------------------------------------------------------------------------------------


def describe(
    target: Gemma4, draft_model: Drafter, state: DecodeState, stages: Stages, options: Options
) -> dict[str, Any]:
    """One entry of the trace's `rounds`."""
    gamma = options.draft_length
    drafts = np.asarray(stages.drafted.tokens[0]).tolist()
    p, q = np.asarray(stages.target_probs), np.asarray(stages.drafted.probs[0])
    q = np.concatenate([q, np.zeros_like(q[:1])])  # after the last draft nothing was proposed
    num_accepted, num_emitted = int(stages.accepted.num_accepted[0]), int(stages.num_emitted[0])
    next_token = int(stages.accepted.next_token[0])
    weights = _weights(stages, options)
    also = [{drafts[i]} if i < gamma else set() for i in range(gamma + 1)]
    also[num_accepted].add(next_token)
    length = int(state.cache.length[0])
    next_weights = residual_of(p[num_accepted], q[num_accepted], weights[num_accepted])
    uniform = None if options.sampling.is_greedy else float(stages.uniforms[-1])
    return {
        "input": int(state.token[0]),
        "places": [place(p[i], q[i], weights[i], also=also[i]) for i in range(gamma + 1)],
        "drafts": _drafts(draft_model, target, state, stages, options, weights),
        "num_accepted": num_accepted,
        "next": draw(next_weights, next_token, uniform),
        "num_emitted": num_emitted,
        "cache": {"before": length, "written": gamma + 1, "after": int(stages.length[0])},
        "sees": _sees(target, draft_model, state, stages),
    }


def _drafts(
    draft_model: Drafter, target: Gemma4, state: DecodeState, stages: Stages, options: Options, weights: list[float]
) -> list[dict[str, Any]]:
    gamma, is_block = options.draft_length, options.acceptance == "block" and not options.sampling.is_greedy
    searched = _searched(draft_model, target, state, stages) if draft_model.config.use_ordered_embeddings else None
    num_accepted, num_emitted = int(stages.accepted.num_accepted[0]), int(stages.num_emitted[0])
    p, q = np.asarray(stages.target_probs), np.asarray(stages.drafted.probs[0])
    drafts_are_greedy = (options.draft_sampling or options.sampling).is_greedy
    drafts = []
    for i, token in enumerate(np.asarray(stages.drafted.tokens[0]).tolist()):
        drawn_by = None if drafts_are_greedy else float(stages.draft_uniforms[i])
        described: dict[str, Any] = {
            "draw": draw(q[i], token, drawn_by),
            "p": exact(p[i, token]),
            "q": exact(q[i, token]),
            "u": None if options.sampling.is_greedy else exact(stages.uniforms[i]),
            "verdict": _verdict(i, num_accepted, is_block=is_block),
            "emitted": i < min(num_accepted, num_emitted),
        }
        if is_block:
            proposed = q[i + 1] if i + 1 < gamma else np.zeros_like(q[0])
            surplus = np.maximum(np.float32(weights[i + 1]) * p[i + 1] - proposed, 0).sum(dtype=np.float64)
            described |= {"weight": exact(weights[i + 1]), "surplus": exact(surplus)}
        if searched is not None:
            described |= {"clusters": searched[i], "reach": _reach(draft_model, searched[i], p[i])}
        drafts.append(described)
    return drafts


def _verdict(index: int, num_accepted: int, *, is_block: bool) -> str:
    """By block every run is judged; token by token nothing behind the first rejection is."""
    if index < num_accepted:
        return ACCEPTED
    return REJECTED if is_block or index == num_accepted else NOT_LOOKED_AT


def _weights(stages: Stages, options: Options) -> list[float]:
    """The weight of the run of drafts before each place; 1 token by token."""
    if options.acceptance != "block" or options.sampling.is_greedy:
        return [1.0] * (options.draft_length + 1)
    index = stages.drafted.tokens[..., None]
    p = jnp.take_along_axis(stages.target_probs[None, :-1], index, axis=-1)[..., 0]
    q = jnp.take_along_axis(stages.drafted.probs, index, axis=-1)[..., 0]
    return np.asarray(run_weights(p, q))[0].tolist()


@jax.jit
def _cluster_scores(
    target: Gemma4, draft_model: Drafter, state: DecodeState, drafted: Int[Array, "b gamma"], shared: SharedCache
) -> tuple[Int[Array, "gamma top_k"], Float[Array, "gamma clusters"]]:
    """For each draft step the clusters that it searched, and the scores of all."""
    centroids, ordering, top_k = draft_model.masked_embedding.clusters()
    found, scores, hidden = [], [], state.hidden
    for i in range(drafted.shape[1]):
        token = state.token if i == 0 else drafted[:, i - 1]
        normed, hidden = step(draft_model, target.embed_tokens(token), hidden, shared)
        found.append(best_clusters(normed, centroids, ordering, top_k)[0][0])
        scores.append((normed @ centroids.T)[0])
    return jnp.stack(found), jnp.stack(scores).astype(jnp.float32)


def _searched(
    draft_model: Drafter, target: Gemma4, state: DecodeState, stages: Stages
) -> list[list[list[int | float]]]:
    """For each draft: [cluster, score] of the clusters that were searched, the best first."""
    found, scores = _cluster_scores(target, draft_model, state, stages.drafted.tokens, stages.shared)
    found, scores = np.asarray(found), np.asarray(scores)
    return [[[int(c), round(float(scores[i, c]), 3)] for c in row] for i, row in enumerate(found)]


def _reach(draft_model: Drafter, searched: list[list[int | float]], p: Float[np.ndarray, " v"]) -> float:
    """How much of the target's probability lies in the clusters that were searched."""
    members = np.asarray(draft_model.masked_embedding.token_ordering[...]).reshape(draft_model.config.num_centroids, -1)
    tokens = members[[int(cluster) for cluster, _ in searched]].reshape(-1)
    return round(float(p[tokens].sum(dtype=np.float64)), 6)


def _sees(target: Gemma4, draft_model: Drafter, state: DecodeState, stages: Stages) -> dict[str, Any]:
    """Layer type -> the first and last position that each query sees: every draft step, and each row of verify.

    Read off the masks themselves.
    """
    masks = jax.device_get(_masks(target, draft_model, state, stages.drafted.tokens, stages.shared))
    return {
        kind: {"draft": _range(before, drafting[0, 0]), "verify": [_range(written, row) for row in verifying[0]]}
        for kind, (before, drafting, written, verifying) in masks.items()
    }


@jax.jit
def _masks(
    target: Gemma4, draft_model: Drafter, state: DecodeState, drafted: Int[Array, "b gamma"], shared: SharedCache
) -> dict[str, tuple[jax.Array, ...]]:
    """For each layer type that the drafter has: the position of each slot and the mask, of a draft step and of verify."""
    length, tokens = state.cache.length, jnp.concatenate([state.token[:, None], drafted], axis=1)
    slots = {kind: slot_positions(length - 1, kv.capacity) for kind, kv in shared.donors.items()}
    found = {}
    for kind, inputs in draft_model.attention_inputs(length[:, None], slots).items():
        written = slot_positions(length + tokens.shape[1] - 1, shared.donors[kind].capacity)
        verifying = target.attention_inputs(kind, tokens, state.cache)
        found[kind] = slots[kind][0], inputs.mask, written[0], verifying.mask
    return found


def _range(positions: np.ndarray, mask: np.ndarray) -> list[int]:
    seen = positions[mask]
    return [int(seen.min()), int(seen.max())]


# -- the rest of the trace ---------------------------------------------------------------------------------------------


def _first_draw(target: Gemma4, state: DecodeState, options: Options, seed: int) -> dict[str, Any]:
    """The prefill's token: drawn from the target's distribution after the prompt."""
    _, sample_key = jax.random.split(jax.random.key(seed))
    probs = np.asarray(_token_probs(target.logits(state.hidden), options.sampling))[0]
    uniform = None if options.sampling.is_greedy else float(jax.random.uniform(sample_key, (1,))[0])
    return draw(probs, int(state.token[0]), uniform)


def _settings(options: Options, max_new_tokens: int, seed: int) -> dict[str, Any]:
    return {
        "draft_length": options.draft_length,
        "sampling": _sampling(options.sampling),
        "draft_sampling": _sampling(options.draft_sampling or options.sampling),
        "acceptance": "greedy" if options.sampling.is_greedy else options.acceptance,
        "seed": seed,
        "eos_ids": list(options.eos_ids),
        "max_new_tokens": max_new_tokens,
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    return {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}


def _model(target: Gemma4, draft_model: Drafter, state: DecodeState, vocabulary: set[int]) -> dict[str, Any]:
    config = target.config
    donors = {
        kind: {"layer": config.donors[kind], "capacity": kv.capacity}
        for kind, kv in share_cache(state.cache, config).donors.items()
    }
    layers = [{"type": kind, "reads": config.kv_source[layer]} for layer, kind in enumerate(config.layer_types)]
    head: dict[str, Any] = {"kind": "dense"}
    if draft_model.config.use_ordered_embeddings:
        count = draft_model.config.num_centroids
        ordering = np.asarray(draft_model.masked_embedding.token_ordering[...])
        cluster_of = np.empty(len(ordering), int)
        cluster_of[ordering] = np.arange(len(ordering)) // (len(ordering) // count)
        head = {
            "kind": "clustered",
            "clusters": count,
            "size": len(ordering) // count,
            "searched": draft_model.config.centroid_intermediate_top_k,
            "cluster_of": {str(token): int(cluster_of[token]) for token in sorted(vocabulary)},
        }
    return {
        "vocab_size": config.vocab_size,
        "layers": layers,
        "window": config.sliding_window,
        "convention": draft_model.config.convention,
        "donors": donors,
        "head": head,
    }


def _ids_in(rounds: Iterable[dict[str, Any]]) -> set[int]:
    found = set()
    for described in rounds:
        found |= {described["input"], described["next"]["token"]}
        found |= {drafted["draw"]["token"] for drafted in described["drafts"]}
        found |= {row[0] for where in described["places"] for row in where["tokens"]}
    return found


def made_by(command: str, target: Gemma4, names: tuple[str, str]) -> dict[str, Any]:
    """The trace's field of this name.  names: of target and drafter, for people."""
    return {
        "engine": f"gemma4-mtp {gemma4.__version__}",
        "command": command,
        "target": names[0],
        "drafter": names[1],
        "platform": jax.devices()[0].platform,
        "dtype": str(target.embed_tokens.weight.dtype),
    }
