"""What each machine form of `fast/` gains over its plain form, on the machine where this runs:

    python tutorials/reference/twins.py        (a few minutes; needs 4 GB)

Both forms of a pair take turns.  `speed.md` has the results as a table.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import decoding
import gemma4
from decoding import fast, sampling
from decoding.bench.machine import device_name
from decoding.generation import speculative_rounds
from decoding.round import speculative_round
from decoding.state import DecodeState, Round
from drafter import clustering
from drafter.fast import candidates_in_blocks, in_blocks
from gemma4 import functional, moe
from gemma4.fast.attention_scores import scores
from gemma4.fast.experts import experts_sparse
from gemma4.fast.linear import FlatLinear
from gemma4.fast.long_attention import attention_in_blocks
from gemma4.fast.twin import twin_of
from gemma4.layers import Linear

VOCABULARY = 262_144  # Gemma 4's
SLOTS, SLOTS_OF_A_CHUNK, SLOTS_IN_BLOCKS = 4096, 16_384, 32_768
EXPERTS = 128  # 26B-A4B's
TURNS, FEWEST_TURNS, SECONDS = 15, 5, 20.0  # so many turns, or as many as take so long
GAMMA, NEW_TOKENS = 4, 120

Run = Callable[[], Any]
Pair = tuple[str, Run, Run]  # what is computed, its plain form, its machine form


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def jitted(function: Callable, *arguments: Any) -> Run:
    run = jax.jit(function)
    return lambda: jax.block_until_ready(run(*arguments))


def attention_forms() -> Iterator[Pair]:
    def case(queries: int, slots: int, fast_form: Callable) -> tuple[Run, Run]:
        """A full layer of E2B: 8 query heads over one K/V head of 512."""
        key, value = normal(1, 1, 1, slots, 512), normal(2, 1, 1, slots, 512)
        query, mask = normal(3, 1, queries, 8, 512), jnp.ones((1, queries, slots), bool)
        return jitted(functional.attention, query, key, value, mask), jitted(fast_form, query, key, value, mask)

    few = functools.partial(functional.attention, scores_of=scores)
    in_blocks = attention_in_blocks
    yield f"attention_scores.py: a step over {SLOTS:,} slots", *case(1, SLOTS, few)
    yield f"attention_scores.py: a verify of 5 tokens over {SLOTS:,} slots", *case(5, SLOTS, few)
    yield f"long_attention.py: a step over {SLOTS_IN_BLOCKS:,} slots", *case(1, SLOTS_IN_BLOCKS, in_blocks)
    yield (
        f"long_attention.py: a chunk of 512 tokens over {SLOTS_OF_A_CHUNK:,} slots",
        *case(512, SLOTS_OF_A_CHUNK, in_blocks),
    )


def model_forms() -> Iterator[Pair]:
    target, draft_model, _ = decoding.load_pair()
    prompt = jnp.ones((1, 512), jnp.int32)
    cache, index = gemma4.init_cache(target.config, capacity=640, chunk=513), jnp.array([511])
    hidden_at = lambda model: model.hidden_at(prompt, cache, index)[0]
    yield (
        "target.py, per_layer_embeddings.py: prefill of 512 tokens, the shipped target",
        jitted(hidden_at, target),
        jitted(hidden_at, fast.for_backend(target, "cpu")),
    )
    table, hidden = normal(0, VOCABULARY, 256), normal(1, 5, 256)
    table, hidden = normal(0, VOCABULARY, 256), normal(1, 1, 256)
    ordering, centroids = jax.random.permutation(jax.random.key(2), VOCABULARY).astype(jnp.int32), normal(3, 2048, 256)

    def best_in_blocks(hidden, blocks, centroids, ordering):
        return clustering.best_candidate(*candidates_in_blocks(hidden, blocks, centroids, ordering, 32), VOCABULARY)

    yield (
        "drafter/fast.py: the clustered head at E2B's size, greedy, in blocks",
        jitted(lambda *arrays: clustering.clustered_argmax(*arrays, 32), hidden, table, centroids, ordering),
        jitted(best_in_blocks, hidden, in_blocks(table, ordering, 2048), centroids, ordering),
    )


def layer_forms() -> Iterator[Pair]:
    width, inner, top_k = 704, 176, 8  # 26B-A4B at a quarter of its widths
    gate_up, down = normal(0, EXPERTS, 2 * inner, width), normal(1, EXPERTS, width, inner)

    def repeated(form: Callable, gate_up: jax.Array, down: jax.Array, x: jax.Array, visits: jax.Array) -> jax.Array:
        """Once for each of several choices of experts, one after the other, as in a loop over rounds."""
        weights = jnp.full(visits.shape[1:], 1 / top_k)
        return jax.lax.scan(lambda x, visit: (x + form(gate_up, down, x, weights, visit), None), x, visits)[0]

    for tokens in (1, 5, 512):
        visits = jax.random.randint(jax.random.key(2), (3, 1, tokens, top_k), 0, EXPERTS)
        arguments = gate_up, down, normal(3, 1, tokens, width), visits
        dense, sparse = (functools.partial(repeated, form) for form in (moe.experts_dense, experts_sparse))
        name = f"experts.py: three times {tokens} token{'s' * (tokens > 1)}, 26B-A4B's experts at a quarter of their widths"
        yield name, jitted(dense, *arguments), jitted(sparse, *arguments)

    linear, x = Linear(256, 1024, rngs=nnx.Rngs(0), dtype=jnp.float32), normal(4, 16, 256, 256)
    gradient = lambda model, x: jax.grad(lambda model: jnp.sum(model(x) ** 2))(model)
    yield (
        "linear.py: the gradient of a linear map from 256 to 1,024, 16 texts of 256 tokens",
        jitted(gradient, linear, x),
        jitted(gradient, twin_of(linear, FlatLinear), x),
    )


def vocabulary_forms() -> Iterator[Pair]:
    logits, uniforms = 3 * normal(0, 5, VOCABULARY), jax.random.uniform(jax.random.key(1), (5,))
    probs = jax.nn.softmax(logits)

    def pair(kernel: str, *arguments: jax.Array, **settings: Any) -> tuple[Run, Run]:
        forms = (getattr(kernels, kernel) for kernels in (sampling.REFERENCE, fast.KERNELS))
        reference, machine = (functools.partial(form, **settings) for form in forms)
        return jitted(reference, *arguments), jitted(machine, *arguments)

    what = f"5 distributions over {VOCABULARY:,} tokens"
    yield f"argmax.py: {what}", *pair("argmax", logits)
    yield f"top_k_top_p.py: top-k of 64, {what}", *pair("top_k_mask", logits, top_k=64)
    yield f"top_k_top_p.py: top-p of 0.95, {what}", *pair("top_p_mask", probs, top_p=0.95)
    yield f"inverse_cdf.py: {what}", *pair("sample_from", probs, uniforms)


def loop_forms() -> Iterator[Pair]:
    target, draft_model, tokenizer = decoding.load_pair()
    prompt = [target.config.bos_token_id, *tokenizer.encode("In the beginning", add_special_tokens=False).ids]
    options = fast.with_kernels(decoding.Options(GAMMA))
    models = fast.for_backend(target), fast.for_backend(draft_model)
    states = {
        batch: decoding.prefill(models[0], [prompt] * batch, options, max_new_tokens=NEW_TOKENS) for batch in (1, 8)
    }
    copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def rounds(loop: Callable[[DecodeState], Iterator[Round]], batch: int = 1) -> Run:
        return lambda: list(loop(copied(states[batch])))  # a copy, because the rounds take over its buffers

    def fast_rounds(loop: str, threads: int = 1) -> Callable[[DecodeState], Iterator[Round]]:
        return lambda state: fast.run(loop, threads)(state, speculative_round, options, *models)

    def generated(loop: str) -> Run:
        settings = {"max_new_tokens": NEW_TOKENS, "draft_length": GAMMA, "loop": loop}
        return lambda: decoding.generate(target, draft_model, prompt, **settings)

    what = f"{NEW_TOKENS} tokens of the shipped pair"
    plain_rounds = rounds(lambda state: speculative_rounds(*models, state, options))
    yield (
        f"round_loop.py, jit.py: streamed against plain rounds, twins in both, {what}",
        plain_rounds,
        rounds(fast_rounds("streamed")),
    )
    yield (
        f"round_loop.py, jit.py: on_device against plain rounds, twins in both, {what}",
        plain_rounds,
        rounds(fast_rounds("on_device")),
    )
    on_device = rounds(fast_rounds("on_device"), 8), rounds(fast_rounds("on_device", threads=2), 8)
    yield f"threads.py: two threads against one, eight prompts, {what}", *on_device
    yield (
        f'all: loop="streamed" against loop="plain", {what}, prefill included',
        generated("plain"),
        generated("streamed"),
    )
    yield (
        f'all: loop="on_device" against loop="plain", {what}, prefill included',
        generated("plain"),
        generated("on_device"),
    )


FORMS = (attention_forms, model_forms, layer_forms, vocabulary_forms, loop_forms)


def main() -> None:
    print(f"{device_name()}, jax {jax.__version__}, float32; medians of {TURNS} turns")
    print(f"{'plain, ms':>10} {'fast, ms':>10} {'faster':>9}  quartiles")
    for forms in FORMS:
        for name, *pair in forms():
            print(line(name, *take_turns(*pair)), flush=True)


def take_turns(reference: Run, machine: Run) -> tuple[list[float], list[float]]:
    """Seconds of both forms, turn by turn."""
    for run in (reference, machine):
        run()  # compiles
    turns: list[tuple[float, float]] = []
    while len(turns) < min(TURNS, FEWEST_TURNS) or len(turns) < TURNS and sum(map(sum, turns)) < SECONDS:
        turns.append((seconds(reference), seconds(machine)))
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def line(name: str, reference: list[float], machine: list[float]) -> str:
    ratios = [one / other for one, other in zip(reference, machine, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    times = (f"{1000 * statistics.median(values):10.2f}" for values in (reference, machine))
    return f"{' '.join(times)} {middle:7.2f} x  {low:.2f}-{high:.2f}  {name}"


if __name__ == "__main__":
    main()
