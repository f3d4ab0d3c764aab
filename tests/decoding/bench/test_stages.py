"""What a stage does, and that its timer repeats it."""

import functools
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.baseline import autoregressive_step
from decoding.bench import contexts, stages
from decoding.fast.jit import compiler_options
from decoding.options import Options
from decoding.sampling import Sampling
from decoding.stages.accept import accept_greedy
from decoding.stages.draft import Draft, draft
from decoding.stages.prefill import prefill
from decoding.stages.verify import verify
from drafter import share_cache
from gemma4.checkpoints.params import linear_weights, named_params
from tests.flops import flops_of
from tests.models import small_drafter, small_target

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


def options(temperature: float) -> Options:
    return Options(GAMMA, Sampling(temperature), Sampling(temperature))


def new_desk(temperature: float = 0.0, budget: int = 5) -> stages.Desk:
    """Two prompts read; drafts, laws and logits drawn at random, zeros of either sign among the logits."""
    target = small_target()
    desk = stages._desk(target, prefill(target, PROMPTS, budget, options(temperature), None), options(temperature))
    drawn = [jax.random.normal(jax.random.key(seed), x.shape) for seed, x in enumerate((desk.block.probs, desk.logits))]
    tokens = jnp.arange(len(PROMPTS) * GAMMA).reshape(-1, GAMMA) + 3
    block = Draft(tokens.astype(jnp.int32), jax.nn.softmax(drawn[0]))
    return desk._replace(block=block, logits=drawn[1].at[:, :, 0].set(-0.0).at[:, :, 1].set(0.0))


@functools.cache
def built(stage: stages.Stage, repeated: bool, temperature: float = 0.0, waits: bool = True):
    """A stage compiled as its timer does it, or without a loop; without `after` unless it waits.  (count, desk) to desk."""
    run = stages._repeated.__wrapped__(stage) if repeated else _once(stage)
    step = lambda target, draft_model, counted: run(target, draft_model, counted, options(temperature))
    counted = (jnp.int32(1), new_desk(temperature))
    jitted = jax.jit(step, compiler_options=compiler_options())
    neglect = lambda module: mock.patch.object(
        module, "after", (lambda done, value: value) if not waits else stages.after
    )
    with neglect(stages), neglect(contexts):
        return jitted.lower(small_target(), small_drafter(), counted).compile()


def _once(stage):
    return lambda target, draft_model, counted, options: (counted[0], stage(target, draft_model, counted[1], options))


def desk_after(stage: stages.Stage, desk: stages.Desk, count: int = 3, temperature: float = 0.0) -> stages.Desk:
    return built(stage, True, temperature)(small_target(), small_drafter(), (jnp.int32(count), desk))[1]


def by_loop(text: str) -> tuple[list[str], list[str]]:
    """The computations of optimised HLO: those that run in loops, and all others."""
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
    """Loops that no other loop holds."""
    return sum(body.count(" while(") for body in by_loop(text)[1])


@pytest.mark.parametrize("name", WORK_OF)
def test_work_is_done_in_every_repetition(name):
    """In the optimised code all of it stands within the loop, as much as in one plain run, and for both prompts."""
    stage, kind = WORK_OF[name]
    repeated, once = (built(stage, repeated).as_text() for repeated in (True, False))
    inside, outside = operations(repeated, kind)
    assert not outside and loops_outside(repeated) == 1, "a draft is a loop itself, and would count as one"
    plain = sum(operations(once, kind), Counter())
    assert sum(inside.values()) == sum(plain.values()) > 0
    assert inside == plain


@pytest.mark.parametrize("name", ["verify", "draft and verify"])
def test_angles_are_worked_out_in_every_repetition(name):
    """As in a round, though a verify is back at the same place each time."""
    inside, outside = operations(built(WORK_OF[name][0], True).as_text(), "cosine")
    assert inside and not outside


def test_sampled_acceptance_is_done_in_every_repetition():
    inside, outside = operations(built(stages.accept_stage, True, 1.0).as_text(), "reduce")
    assert inside == operations(built(stages.accept_stage, False, 1.0).as_text(), "reduce")[1] and not outside
    assert f"f32[{len(PROMPTS)},{GAMMA + 1}]{{1,0}}" in inside


@pytest.mark.parametrize("name", ["verify", "draft and verify", "accept", "products", "attention"])
def test_work_is_lost_without_after(name):
    """What the compiler does to a stage whose next repetition does not wait for this one's result."""
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
    desk = new_desk()
    out = desk_after(stages.draft_stage, desk, count=2)
    token, target = desk.block.tokens[:, -1], small_target()
    shared = share_cache(desk.state.cache, target.config)
    run = jax.jit(functools.partial(draft, draft_length=GAMMA))
    for _ in range(2):
        block = run(target, small_drafter(), token, desk.state.hidden, shared, desk.state.key)
        token = block.tokens[:, -1]
    np.testing.assert_array_equal(out.block.tokens, block.tokens)
    assert_same(out._replace(block=desk.block, state=out.state._replace(key=desk.state.key)), desk)


def test_draft_stage_writes_the_laws_of_a_sampled_round():
    desk = new_desk(1.0)
    out = desk_after(stages.draft_stage, desk, temperature=1.0)
    assert np.abs(out.block.probs - desk.block.probs).max() > 1e-3
    np.testing.assert_allclose(out.block.probs.sum(axis=-1), 1, rtol=1e-5)


def test_verify_stage():
    """Logits are verify's; tokens, drafts and the length stay, whatever the number of repetitions."""
    desk, target = new_desk(), small_target()
    out = desk_after(stages.verify_stage, desk)
    expected = jax.jit(verify)(target, desk.state.cache, desk.state.token, desk.block.tokens).logits
    np.testing.assert_allclose(out.logits, expected, atol=2e-5)
    np.testing.assert_array_equal(out.state.cache.length, [len(prompt) for prompt in PROMPTS])
    cache = out.state.cache._replace(layers=desk.state.cache.layers)
    assert_same(out._replace(logits=desk.logits, state=out.state._replace(cache=cache)), desk)


def test_draft_and_verify_stage():
    """The drafts are those of `draft_stage`; behind them the target reads one more, as many as were asked for."""
    desk = new_desk()
    out = desk_after(stages.draft_and_verify(GAMMA + 1), desk, count=2)
    drafted = desk_after(stages.draft_stage, desk, count=2)
    read = f"f32[{len(PROMPTS) * (GAMMA + 2)},{small_target().config.vocab_size}]"
    assert any(
        shape.startswith(read)
        for shape in operations(built(stages.draft_and_verify(GAMMA + 1), True).as_text(), "dot")[0]
    )
    cache = out.state.cache._replace(layers=desk.state.cache.layers)
    assert_same(out._replace(state=out.state._replace(cache=cache)), drafted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_accept_stage(temperature):
    desk = new_desk(temperature)
    out = desk_after(stages.accept_stage, desk, temperature=temperature)
    assert_same(out._replace(state=out.state._replace(key=desk.state.key)), desk)


def test_accept_stage_judges(monkeypatch):
    """By the same function as a round, on what lies on the desk."""
    seen, desk, judge = [], new_desk(), stages.judge
    monkeypatch.setattr(stages, "judge", lambda *args: seen.append(judge(*args)) or seen[-1])
    stages.accept_stage(small_target(), small_drafter(), desk, options(0.0))
    assert_same(seen, [accept_greedy(desk.logits, desk.block.tokens)])


def test_rollback_stage(monkeypatch):
    """By the same function as a round; the cache is as long as before, and nothing else has changed."""
    kept, desk, rollback = [], new_desk(), stages.rollback
    monkeypatch.setattr(stages, "rollback", lambda *args: kept.append(args[2]) or rollback(*args))
    assert_same(stages.rollback_stage(small_target(), small_drafter(), desk, options(0.0)), desk)
    np.testing.assert_array_equal(kept, [[3, 3]])


def test_products_stage():
    """One product for each linear weight and the head, of gamma + 1 rows a prompt; nothing on the desk changes.

    In the optimised code the products are whole, though only one number of each is looked at, and nothing sums them up.
    """
    desk, target = new_desk(), small_target()
    assert_same(desk_after(stages.products_stage, desk), desk)
    weights = [named_params(target)[name] for name in linear_weights(target)] + [target.embed_tokens.weight[...].T]
    rows = len(PROMPTS) * (GAMMA + 1)
    run = lambda target, desk: stages.products_stage(target, small_drafter(), desk, options(0.0))
    assert flops_of(run, target, desk) == 2 * rows * sum(weight.size for weight in weights)
    text = built(stages.products_stage, True).as_text()
    assert operations(text, "dot")[0] == Counter(f"f32[{rows},{weight.shape[1]}]{{1,0}}" for weight in weights)
    assert not any(operations(text, kind)[0] for kind in ("reduce", "reduce-window"))


def test_autoregressive_stage():
    """A token at a time until the budget is used up; then the row stands still."""
    target, states = small_target(), [new_desk(budget=4).state]
    for _ in range(3):
        donated = jax.tree.map(jnp.copy, states[-1])
        states.append(autoregressive_step(target, donated, Options(0)))
    for count, expected in ((1, states[1]), (3, states[3]), (10, states[3])):
        out = desk_after(stages.autoregressive_stage, new_desk(budget=4), count)
        np.testing.assert_array_equal(out.state.token, expected.token)
        np.testing.assert_array_equal(out.state.cache.length, expected.cache.length)
    assert out.state.done.all()


def test_attention_stage():
    desk = new_desk()
    out = desk_after(ATTENTION, desk)
    cache = desk.state.cache
    assert_same(out._replace(state=out.state._replace(cache=cache)), desk)
    before, now = cache.layers[0].key, out.state.cache.layers[0].key
    written = np.abs(np.asarray(now - before)).max(axis=(1, 3)) > 0
    expected = np.zeros_like(written)
    expected[np.arange(len(PROMPTS)), np.asarray(cache.length) % before.shape[2]] = True
    np.testing.assert_array_equal(written, expected)
    assert_same(out.state.cache.layers[1:], cache.layers[1:])


# -- the timer ---------------------------------------------------------------------------------------------------------


def counting_stage(target, draft_model, desk, options):
    return desk._replace(state=desk.state._replace(emitted=desk.state.emitted + 1))


@pytest.mark.parametrize(
    "seconds, given, count", [(0.001, 0, 400), (0.07, 0, 5), (5.0, 0, 1), (0.001, 3, 3), (5.0, 3, 3)]
)
def test_timer(seconds, given, count, monkeypatch):
    """A call of a short stage repeats it, and any stage as often as is `given`; the time of one is the call's over their
    number.  Here a call takes `seconds`."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=tick))  # JAX reads the real one
    monkeypatch.setattr(stages, "LAP_SECONDS", 0.08)
    state = prefill(small_target(), PROMPTS, 5, options(0.0), None)
    timer = stages.Timer(counting_stage, small_target(), small_drafter(), state, options(0.0), given)
    assert timer.compile_seconds == pytest.approx(0)
    counted = lambda: int(timer._desks[0].state.emitted[0])
    before = counted()
    assert timer.lap() == pytest.approx(seconds / count)
    assert counted() - before == count
    assert int(state.emitted[0]) == 1, "the state that was given is not donated"


def test_timer_of_threads(monkeypatch):
    """Rows are dealt; every part is repeated, all of them at once."""
    at_once, together = stages.at_once, []
    monkeypatch.setattr(stages, "at_once", lambda calls: together.append(len(calls)) or at_once(calls))
    state = prefill(small_target(), PROMPTS, 5, options(0.0), None)
    timer = stages.Timer(counting_stage, small_target(), small_drafter(), state, options(0.0), 3, threads=2)
    timer.lap()
    counts = [desk.state.emitted.tolist() for desk in timer._desks]
    assert counts == [[1 + 2 + 3], [1 + 2 + 3]]  # by the prefill, by two calls that show how long one takes, by the lap
    assert together == [2, 2, 2]
