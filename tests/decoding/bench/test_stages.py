"""What each stage does, and that its timer repeats it."""

import functools
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import fast
from decoding.baseline import autoregressive_step
from decoding.bench import stages
from decoding.bench.extra import contexts
from decoding.options import Options
from decoding.sampling import Kernels, Sampling
from decoding.stages.accept import accept_greedy
from decoding.stages.draft import Draft, draft
from decoding.stages.prefill import prefill
from decoding.stages.verify import verify
from decoding.state import DecodeState
from drafter import Drafter, share_cache
from gemma4 import Gemma4
from gemma4.checkpoints.params import linear_weights, named_params
from tests.flops import flops_of
from tests.models import small_drafter, small_subject, small_target

# -- stages ------------------------------------------------------------------------------------------------------------

GAMMA, PROMPTS = 2, [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]
ATTENTION = contexts.attention_stage(0)
# What each stage is measured for: matrix products, or passes over the vocabulary.
WORK_OF = {
    "draft": (stages.draft_stage, "dot"),
    "verify": (stages.verify_stage, "dot"),
    "draft and verify": (stages.draft_and_verify(GAMMA + 1), "dot"),
    "accept": (stages.accept_stage, "reduce"),
    "autoregressive": (stages.autoregressive_stage, "dot"),
    "products": (stages.products_stage, "dot"),
    "attention": (ATTENTION, "dot"),
}


@functools.cache
def twins() -> tuple[Gemma4, Drafter]:
    """The models in the form in which they are measured."""
    _, target, draft_model, _ = small_subject().for_backend()
    return target, draft_model


def options(temperature: float) -> Options:
    return fast.with_kernels(Options(GAMMA, Sampling(temperature)))


def prefilled(temperature: float = 0.0, budget: int = 5) -> DecodeState:
    return prefill(twins()[0], PROMPTS, options(temperature), max_new_tokens=budget)


def new_inputs(temperature: float = 0.0, budget: int = 5) -> stages.StageInputs:
    """Two prompts read; drafts, their distributions and logits drawn at random, zeros of both signs among the logits."""
    inputs = stages._stage_inputs(twins()[0], prefilled(temperature, budget), options(temperature))
    arrays = inputs.drafted.probs, inputs.logits
    probs, logits = (jax.random.normal(jax.random.key(seed), x.shape) for seed, x in enumerate(arrays))
    tokens = jnp.arange(len(PROMPTS) * GAMMA).reshape(-1, GAMMA) + 3
    drafted = Draft(tokens.astype(jnp.int32), jax.nn.softmax(probs))
    return inputs._replace(drafted=drafted, logits=logits.at[:, :, 0].set(-0.0).at[:, :, 1].set(0.0))


@functools.cache
def built(stage: stages.Stage, repeated: bool, temperature: float = 0.0, waits: bool = True):
    """(count, inputs) -> inputs: a stage compiled as its timer does, or without a loop; without `after` unless it waits."""
    run = stages._repeated.__wrapped__(stage) if repeated else _once(stage)
    step = lambda target, draft_model, counted: run(target, draft_model, counted, options(temperature))
    counted = (jnp.int32(1), new_inputs(temperature))
    jitted = jax.jit(step)
    neglect = lambda module: mock.patch.object(
        module, "after", (lambda done, value: value) if not waits else stages.after
    )
    with neglect(stages), neglect(contexts):
        return jitted.lower(*twins(), counted).compile()


def _once(stage):
    return lambda target, draft_model, counted, options: (counted[0], stage(target, draft_model, counted[1], options))


def repeat(
    stage: stages.Stage, inputs: stages.StageInputs, count: int = 3, temperature: float = 0.0
) -> stages.StageInputs:
    """After `count` repetitions."""
    return built(stage, True, temperature)(*twins(), (jnp.int32(count), inputs))[1]


def by_loop(text: str) -> tuple[list[str], list[str]]:
    """The computations of optimised HLO: those in loops, and all others."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    inside, waiting = set(), re.findall(r"body=%?([\w.-]+)", text)
    while waiting:
        name = waiting.pop()
        if name not in inside:
            inside.add(name)
            waiting += [word for word in re.findall(r"[=,{]\s*%([\w.-]+)", bodies[name]) if word in bodies]
    return [bodies[name] for name in inside], [bodies[name] for name in bodies.keys() - inside]


def operations(text: str, kind: str) -> tuple[Counter, Counter]:
    """Shapes of all results of one kind of operation: those in loops, and all others."""
    shapes = lambda body: re.findall(rf"= (\([^=]*?\)|\S+) {kind}\(", body)
    inside, outside = (Counter(shape for body in bodies for shape in shapes(body)) for bodies in by_loop(text))
    return inside, outside


def loops_outside(text: str) -> int:
    """Loops that are in no other loop."""
    return sum(body.count(" while(") for body in by_loop(text)[1])


@pytest.mark.parametrize("name", WORK_OF)
def test_work_is_done_in_every_repetition(name):
    """In the optimised code all of it is within the loop, as much as in a single run, and for both prompts."""
    stage, kind = WORK_OF[name]
    repeated, once = (built(stage, repeated).as_text() for repeated in (True, False))
    inside, outside = operations(repeated, kind)
    assert not outside and loops_outside(repeated) == 1, "a draft has a loop of its own, which would count as this one"
    plain = sum(operations(once, kind), Counter())
    assert sum(inside.values()) == sum(plain.values()) > 0
    assert inside == plain


@pytest.mark.parametrize("name", ["verify", "draft and verify"])
def test_rope_is_computed_in_every_repetition(name):
    """As in a round, although a verify is at the same position each time."""
    inside, outside = operations(built(WORK_OF[name][0], True).as_text(), "cosine")
    assert inside and not outside


def test_sampled_acceptance_is_done_in_every_repetition():
    inside, outside = operations(built(stages.accept_stage, True, 1.0).as_text(), "reduce")
    assert inside == operations(built(stages.accept_stage, False, 1.0).as_text(), "reduce")[1] and not outside
    assert f"f32[{len(PROMPTS)},{GAMMA + 1}]{{1,0}}" in inside


@pytest.mark.parametrize("name", ["verify", "draft and verify", "accept", "products", "attention"])
def test_work_is_lost_without_after(name):
    """What the compiler does if a repetition does not wait for the one before it."""
    stage, kind = WORK_OF[name]
    inside, _ = operations(built(stage, True, waits=False).as_text(), kind)
    plain = sum(operations(built(stage, False).as_text(), kind), Counter())
    assert sum(inside.values()) < sum(plain.values())


VALUES = {
    "float32": np.array([0.0, -0.0, 1.5, -np.inf, np.inf, 1e-45, 3e38], np.float32),
    "int32": np.array([0, -1, 5, 2**31 - 1, -(2**31)], np.int32),
}


@pytest.mark.parametrize("done", [np.array([[0.0, 3.0]], np.float32), np.array([-1, 2]), np.array([7, -9])], ids=str)
@pytest.mark.parametrize("dtype", [*VALUES, "bfloat16"])
def test_after_changes_no_bit(dtype, done):
    value = jnp.asarray(VALUES.get(dtype, VALUES["float32"]), dtype)
    out = jax.jit(stages.after)(done, value)
    assert out.dtype == value.dtype and np.asarray(out).tobytes() == np.asarray(value).tobytes()


def assert_same(ours, expected):
    """To the bit."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_draft_stage():
    """Each draft continues from the last token of the one before; nothing else changes but the key."""
    inputs = new_inputs()
    out = repeat(stages.draft_stage, inputs, count=2)
    token, models = inputs.drafted.tokens[:, -1], (small_target(), small_drafter())
    shared = share_cache(inputs.state.cache, small_target().config)
    for _ in range(2):
        drafted = draft(*models, token, inputs.state.hidden, shared, inputs.state.key, draft_length=GAMMA)
        token = drafted.tokens[:, -1]
    np.testing.assert_array_equal(out.drafted.tokens, drafted.tokens)
    assert_same(out._replace(drafted=inputs.drafted, state=out.state._replace(key=inputs.state.key)), inputs)


def test_draft_stage_writes_the_distributions_of_a_sampled_round():
    inputs = new_inputs(1.0)
    out = repeat(stages.draft_stage, inputs, temperature=1.0)
    assert np.abs(out.drafted.probs - inputs.drafted.probs).max() > 1e-3
    np.testing.assert_allclose(out.drafted.probs.sum(axis=-1), 1, rtol=1e-5)


def test_verify_stage():
    """Logits are those of verify; tokens, drafts and the length stay the same for any number of repetitions."""
    inputs = new_inputs()
    out = repeat(stages.verify_stage, inputs)
    expected = jax.jit(verify)(small_target(), inputs.state.cache, inputs.state.token, inputs.drafted.tokens).logits
    np.testing.assert_allclose(out.logits, expected, atol=2e-5)
    np.testing.assert_array_equal(out.state.cache.length, [len(prompt) for prompt in PROMPTS])
    cache = out.state.cache._replace(layers=inputs.state.cache.layers)
    assert_same(out._replace(logits=inputs.logits, state=out.state._replace(cache=cache)), inputs)


def test_draft_and_verify_stage():
    """The drafts are those of `draft_stage`; the verify behind them has one more, as asked."""
    inputs = new_inputs()
    out = repeat(stages.draft_and_verify(GAMMA + 1), inputs, count=2)
    drafted = repeat(stages.draft_stage, inputs, count=2)
    read = f"f32[{len(PROMPTS) * (GAMMA + 2)},{small_target().config.vocab_size}]"
    assert any(
        shape.startswith(read)
        for shape in operations(built(stages.draft_and_verify(GAMMA + 1), True).as_text(), "dot")[0]
    )
    cache = out.state.cache._replace(layers=inputs.state.cache.layers)
    assert_same(out._replace(state=out.state._replace(cache=cache)), drafted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_accept_stage(temperature):
    inputs = new_inputs(temperature)
    out = repeat(stages.accept_stage, inputs, temperature=temperature)
    assert_same(out._replace(state=out.state._replace(key=inputs.state.key)), inputs)


def test_accept_stage_accepts(monkeypatch):
    """By the same function as a round, from its inputs."""
    seen, inputs, accept = [], new_inputs(), stages.accept_drafts
    monkeypatch.setattr(stages, "accept_drafts", lambda *args: seen.append(accept(*args)) or seen[-1])
    stages.accept_stage(*twins(), inputs, options(0.0))
    assert_same(seen, [accept_greedy(inputs.logits, inputs.drafted.tokens)])


KERNELS_OF = {
    "draft, sampled": (stages.draft_stage, 0.5, {"top_k_mask", "top_p_mask", "sample_from"}),
    "accept, greedy": (stages.accept_stage, 0.0, {"argmax"}),
    "accept, sampled": (stages.accept_stage, 0.5, {"top_k_mask", "top_p_mask", "sample_from"}),
    "autoregressive, greedy": (stages.autoregressive_stage, 0.0, {"argmax"}),
    "autoregressive, sampled": (stages.autoregressive_stage, 0.5, {"top_k_mask", "top_p_mask", "sample_from"}),
}


@pytest.mark.parametrize("name", KERNELS_OF)
def test_stages_use_the_kernels_of_their_options(name):
    stage, temperature, expected = KERNELS_OF[name]
    used = set()
    watch = lambda field, kernel: lambda *args: used.add(field) or kernel(*args)
    kernels = Kernels(*(watch(field, kernel) for field, kernel in fast.KERNELS._asdict().items()))
    sampled = Options(GAMMA, Sampling(temperature, top_k=9, top_p=0.9), kernels=kernels)
    jax.eval_shape(
        lambda target, draft_model, inputs: stage(target, draft_model, inputs, sampled), *twins(), new_inputs()
    )
    assert used == expected


def test_rollback_stage(monkeypatch):
    """By the same function as a round; the cache has its length as before, and nothing else changes."""
    kept, inputs, rollback = [], new_inputs(), stages.rollback
    monkeypatch.setattr(stages, "rollback", lambda *args: kept.append(args[2]) or rollback(*args))
    assert_same(stages.rollback_stage(*twins(), inputs, options(0.0)), inputs)
    np.testing.assert_array_equal(kept, [[3, 3]])


def test_products_stage():
    """One product for each linear weight and for the head, of gamma + 1 hidden states a prompt; no input changes.

    In the optimised code the products are whole, although one number of each is read, and nothing sums them up.
    """
    inputs, (target, draft_model) = new_inputs(), twins()
    assert_same(repeat(stages.products_stage, inputs), inputs)
    weights = [named_params(target)[name] for name in linear_weights(target)] + [target.embed_tokens.weight[...].T]
    tokens = len(PROMPTS) * (GAMMA + 1)
    products = lambda target, inputs: stages.products_stage(target, draft_model, inputs, options(0.0))
    assert flops_of(products, target, inputs) == 2 * tokens * sum(weight.size for weight in weights)
    text = built(stages.products_stage, True).as_text()
    assert operations(text, "dot")[0] == Counter(f"f32[{tokens},{weight.shape[1]}]{{1,0}}" for weight in weights)
    assert not any(operations(text, kind)[0] for kind in ("reduce", "reduce-window"))


def test_autoregressive_stage():
    """A token at a time until the budget is used up; then the row stays where it is."""
    target, states = small_target(), [new_inputs(budget=4).state]
    for _ in range(3):
        donated = jax.tree.map(jnp.copy, states[-1])
        states.append(autoregressive_step(target, donated, Options(0)))
    for count, expected in ((1, states[1]), (3, states[3]), (10, states[3])):
        out = repeat(stages.autoregressive_stage, new_inputs(budget=4), count)
        np.testing.assert_array_equal(out.state.token, expected.token)
        np.testing.assert_array_equal(out.state.cache.length, expected.cache.length)
    assert out.state.done.all()


def test_attention_stage():
    inputs = new_inputs()
    out = repeat(ATTENTION, inputs)
    cache = inputs.state.cache
    assert_same(out._replace(state=out.state._replace(cache=cache)), inputs)
    before, now = cache.layers[0].key, out.state.cache.layers[0].key
    written = np.abs(np.asarray(now - before)).max(axis=(1, 3)) > 0
    expected = np.zeros_like(written)
    expected[np.arange(len(PROMPTS)), np.asarray(cache.length) % before.shape[2]] = True
    np.testing.assert_array_equal(written, expected)
    assert_same(out.state.cache.layers[1:], cache.layers[1:])


# -- the timer ---------------------------------------------------------------------------------------------------------


def counting_stage(target, draft_model, inputs, options):
    return inputs._replace(state=inputs.state._replace(emitted=inputs.state.emitted + 1))


@pytest.mark.parametrize(
    "seconds, given, count", [(0.001, 0, 400), (0.07, 0, 5), (5.0, 0, 1), (0.001, 3, 3), (5.0, 3, 3)]
)
def test_timer(seconds, given, count, monkeypatch):
    """A call repeats a short stage, and any stage `given` times; one repetition takes the call's time over their number.

    Here a call takes `seconds`.
    """
    clock = [0.0]

    def tick() -> float:
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=tick))  # JAX reads the real one
    monkeypatch.setattr(stages, "LAP_SECONDS", 0.08)
    state = prefilled()
    timer = stages.Timer(counting_stage, *twins(), state, options(0.0), given)
    assert timer.compile_seconds == pytest.approx(0)
    counted = lambda: int(timer._inputs[0].state.emitted[0])
    before = counted()
    assert timer.lap() == pytest.approx(seconds / count)
    assert counted() - before == count
    assert int(state.emitted[0]) == 1, "the state that was given is not donated"


def test_timer_of_threads(monkeypatch):
    """Rows are split; all parts are repeated at the same time."""
    run_in_threads, together = stages.run_in_threads, []
    monkeypatch.setattr(stages, "run_in_threads", lambda calls: together.append(len(calls)) or run_in_threads(calls))
    state = prefilled()
    timer = stages.Timer(counting_stage, *twins(), state, options(0.0), 3, threads=2)
    timer.lap()
    counts = [inputs.state.emitted.tolist() for inputs in timer._inputs]
    assert counts == [[1 + 2 + 3], [1 + 2 + 3]]  # by the prefill, by two calls that measure one repetition, by the lap
    assert together == [2, 2, 2]
