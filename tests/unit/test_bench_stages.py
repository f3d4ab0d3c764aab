"""What a stage does, that its timer repeats it, what it cannot do without (work), and what follows from its time (cost)."""

import dataclasses
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.accept import accept_greedy
from decoding.autoregressive import autoregressive_step
from decoding.bench import contexts, cost, machine, stages
from decoding.bench.spread import quartiles
from decoding.bench.work import Work, against_machine, draft_work, forward_work, prefill_work
from decoding.compiled import compiler_options
from decoding.draft import Draft, draft
from decoding.generate import start
from decoding.sampling import Sampling
from decoding.speculative import Options
from decoding.verify import verify
from drafter import Drafter, SharedCache, share_cache
from drafter.model import step
from gemma4 import Config, Gemma4, init_cache
from gemma4.storage import abstract, linear_weights, named_params
from tests.small_pair import small_drafter, small_target
from tests.tiny import TINY, TINY_DRAFTERS

# -- operations, counted -----------------------------------------------------------------------------------------------


def counted_flops(jaxpr) -> int:
    """Of all matrix products in a jaxpr: 2 x batch x m x n x k each, those in a scan as often as it runs.

    Errors: ValueError for a product in a `while`, whose number of turns no one knows, and for branches that differ.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [counted_flops(sub) for sub in _jaxprs(equation.params.values())]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * depth * equation.outvars[0].aval.size
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                if len(set(inner)) > 1:
                    raise ValueError(f"branches of {inner} operations")
                total += inner[0]
            case "while":
                if any(inner):
                    raise ValueError("a product in a loop of unknown length")
            case _:  # jit, custom derivatives and the like call theirs once
                total += sum(inner)
    return total


def _jaxprs(values) -> Iterator:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield getattr(value, "jaxpr", value)


def flops_of(run: Callable, *args) -> int:
    return counted_flops(jax.make_jaxpr(run)(*args).jaxpr)


def test_counter():
    a, b = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 7))
    product = 2 * 5 * 2 * 3 * 7
    assert flops_of(jnp.matmul, a, b) == product
    assert flops_of(jax.jit(lambda a, b: a @ b + a @ b), a, b) == 2 * product
    in_scan = lambda a, b: jax.lax.scan(lambda total, _: (total + (a @ b).sum(), None), 0.0, None, length=11)
    assert flops_of(in_scan, a, b) == 11 * product
    assert flops_of(lambda a, b: jax.lax.cond(True, jnp.matmul, lambda a, b: a @ b, a, b), a, b) == product
    own_derivative = jax.custom_jvp(lambda a: a @ b)
    own_derivative.defjvp(lambda primals, tangents: (own_derivative(*primals), tangents[0] @ b))
    assert flops_of(own_derivative, a) == product
    with pytest.raises(ValueError, match="unknown length"):
        flops_of(lambda a, b: jax.lax.fori_loop(0, jnp.int32(a[0, 0, 0]), lambda _, a: a + (a @ b).sum(), a), a, b)


def wide_window(layout: str, **changes) -> Config:
    """`layout` with a window beyond every context here, so that each query attends to the whole capacity."""
    return dataclasses.replace(TINY[layout], sliding_window=64, **changes)


def of_forward(config: Config, batch: int, tokens: int, context: int) -> tuple[Work, int]:
    """What the formula says and what the jaxpr has, for a cache that is full after these tokens."""
    target = abstract(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, context + tokens))
    run = lambda target, cache, tokens: target.logits(target(tokens, cache)[0])
    block = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    return forward_work(target, batch, tokens, context), flops_of(run, target, cache, block)


SHAPES = [(1, 1, 20), (2, 3, 9)]  # batch, tokens, context


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [name for name in TINY if not TINY[name].enable_moe_block])
def test_flops_of_a_forward(layout, shape):
    work, counted = of_forward(wide_window(layout), *shape)
    assert work.flops == counted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_with_experts(shape):
    """Fewer visits than experts and more: each token computes its own experts, and nothing else."""
    work, counted = of_forward(wide_window("26B-A4B"), *shape)
    assert work.flops == counted


@pytest.mark.parametrize("layout", [name for name in TINY if not TINY[name].enable_moe_block])
def test_flops_of_a_prefill(layout):
    config, batch, tokens = wide_window(layout), 2, 13
    target = abstract(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, tokens))

    def run(target, cache, tokens, last):
        return target.logits(target(tokens, cache, only=last)[0])

    prompt, last = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, tokens), (batch,)))
    assert prefill_work(target, batch, tokens).flops == flops_of(run, target, cache, prompt, last)


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("layout", list(TINY))
def test_flops_of_a_draft_step(layout, laid_out):
    """Dense heads and clustered ones, as stored and as laid out for a CPU."""
    config, batch, context = TINY[layout], 2, 9
    drafts = TINY_DRAFTERS[layout]
    text = dataclasses.replace(drafts.text, sliding_window=64)
    drafter = abstract(Drafter, dataclasses.replace(drafts, text=text), jnp.float32)
    target = abstract(Gemma4, config, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch, context))
    shared = SharedCache({kind: cache.layers[layer] for kind, layer in config.donors.items()}, cache.length)

    def run(drafter, embedding, hidden, shared):
        drafter = drafter.for_cpu() if laid_out else drafter
        return drafter.argmax(step(drafter, embedding, hidden, shared)[0])

    row = jax.ShapeDtypeStruct((batch, config.hidden_size), jnp.float32)
    work = draft_work(target, drafter, batch, context)
    assert work.flops == flops_of(run, drafter, row, row, shared)


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_by_hand():
    """E2B's tiny layout, S S F | S F (the last two share K/V), batch 2, 3 tokens after 20, all figures written out."""
    tables = 6 * 24 + 64 * 24 + 6 * 5 * 12  # embeddings of 6 tokens, the head, and their per-layer rows
    per_layer_inputs = 24 * 5 * 12 + 12
    sliding, full = 2 * 24 * 4 * 8 + 8, 2 * 24 * 4 * 16 + 16  # q, o, q_norm
    keys_and_values = 2 * (2 * 24 * 8 + 8) + (2 * 24 * 16 + 16)  # k, v, k_norm: of layers 0, 1, and of layer 2
    mlp = 3 * 3 * 24 * 40 + 2 * 3 * 24 * 80
    every_layer = 5 * (5 * 24 + 2 * 24 * 12 + 1)  # five norms, two per-layer projections, a scalar
    weights = tables + per_layer_inputs + 3 * sliding + 2 * full + keys_and_values + mlp + every_layer + 24
    read = 3 * (8 + 2) * 2 * 8 + 2 * 23 * 2 * 16  # a window for the first of 3 queries, two more; all 23
    written = 2 * 3 * 2 * 8 + 1 * 3 * 2 * 16  # by the three owners
    expected = 4 * (weights + 2 * (read + written))
    assert forward_work(abstract(Gemma4, TINY["E2B"], jnp.float32), 2, 3, 20).bytes == expected
    assert forward_work(abstract(Gemma4, TINY["E2B"], jnp.bfloat16), 2, 3, 20).bytes == expected / 2


def test_bytes_of_a_draft_step_by_hand():
    """E2B's tiny drafter, S S S F, clustered: 16 centroids, 3 clusters of 4 tokens."""
    config, drafts = TINY["E2B"], TINY_DRAFTERS["E2B"]
    assert (drafts.num_centroids, drafts.centroid_intermediate_top_k, config.vocab_size) == (16, 3, 64)
    projections = 48 * 20 + 20 * 24
    sliding, full = 2 * 20 * 2 * 8 + 8, 2 * 20 * 2 * 16 + 16
    layers = 3 * sliding + full + 4 * (3 * 20 * 28 + 4 * 20 + 1) + 20
    head = 20 * 16 + 12 * 20 + 12  # centroids, rows of the candidates, their ids
    read = 3 * 8 * 2 * 8 + 20 * 2 * 16
    target, drafter = abstract(Gemma4, config, jnp.float32), abstract(Drafter, drafts, jnp.float32)
    assert draft_work(target, drafter, 1, 20).bytes == 4 * (24 + projections + layers + head + read)


def test_sliding_layers_stop_growing():
    """From context to context only full layers read more."""
    target = abstract(Gemma4, TINY["E2B"], jnp.float32)
    bytes_at = lambda context: forward_work(target, 1, 1, context).bytes
    assert bytes_at(6) - bytes_at(5) == 4 * (3 * 2 * 8 + 2 * 2 * 16)
    assert bytes_at(60) - bytes_at(50) == 10 * 4 * 2 * 2 * 16


def test_layers_that_share_write_nothing():
    """With the last two layers as owners: their key and value weights more, and the rows that they write."""
    config = dataclasses.replace(TINY["E2B"], use_double_wide_mlp=False)
    owners = dataclasses.replace(config, num_kv_shared_layers=0)
    sharing, owning = (forward_work(abstract(Gemma4, one, jnp.float32), 1, 3, 20).bytes for one in (config, owners))
    weights = (2 * 24 * 8 + 8) + (2 * 24 * 16 + 16)
    assert owning - sharing == 4 * (weights + 3 * 2 * 8 + 3 * 2 * 16)


def test_bytes_of_experts():
    """One token reads the experts that it visits; many never read more than all."""
    config = TINY["26B-A4B"]
    bytes_of = lambda config, tokens: forward_work(abstract(Gemma4, config, jnp.float32), 1, tokens, 0).bytes
    everything = dataclasses.replace(config, top_k_experts=config.num_experts)
    expert = 4 * config.num_hidden_layers * 3 * config.moe_intermediate_size * config.hidden_size
    left_out = [(bytes_of(everything, tokens) - bytes_of(config, tokens)) / expert for tokens in (1, 2, 5, 50, 10_000)]
    assert left_out[0] == pytest.approx(4) and left_out == sorted(left_out, reverse=True)
    assert all(experts >= 0 for experts in left_out) and left_out[-1] == pytest.approx(0, abs=1e-6)


def test_against_machine():
    given = machine.Machine("a device", bytes_per_second=1000.0, flops_per_second=500.0)
    entry = against_machine([4.0, 1.0, 2.0], Work(1000.0, 100.0), given)
    assert (entry["seconds"], entry["share_of_bandwidth"], entry["share_of_flops"]) == (2.0, 0.5, 0.1)
    assert (entry["bytes"], entry["flops"], entry["seconds_quartiles"]) == (1000.0, 100.0, [1.5, 3.0])
    assert quartiles([7.0]) == [7.0, 7.0]


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_machine(dtype, monkeypatch):
    monkeypatch.setattr(machine, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machine, "SIDE", {jax.default_backend(): 32})
    found = machine.measure_machine(jnp.dtype(dtype))
    assert found.device == machine.device_name() != ""
    for figure in (found.bytes_per_second, found.flops_per_second, machine.peak_bytes(), machine.num_cores()):
        assert 0 < figure < float("inf")


def test_machine_by_a_clock(monkeypatch):
    """Everything takes two seconds: what was moved and multiplied in them."""
    ticks = itertools.count(0.0, 2.0)
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(machine, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machine, "SIDE", {jax.default_backend(): 32})
    found = machine.measure_machine(jnp.dtype("float32"))
    assert found[1:] == (2 * 2**16 / 2, 2 * 32**3 / 2)


# -- the cost model ----------------------------------------------------------------------------------------------------

TIMES = cost.Times(autoregressive=10.0, first_draft=4.0, further_draft=1.0, verify=11.0, accept=2.0)


@pytest.mark.parametrize("draft_length, expected", [(1, 30 / 17), (4, 30 / 20), (8, 30 / 24)])
def test_speed_up(draft_length, expected):
    assert cost.speed_up(3.0, draft_length, TIMES) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.6, 0.9, 1.0])
def test_simulated_acceptance(rate):
    """Over many rows the first i drafts stay with rate^i, within 4 sigma; the target's own token stands after them."""
    rows, gamma, vocabulary = 20_000, 4, 7
    logits = jax.random.normal(jax.random.key(1), (rows, gamma + 1, vocabulary))
    block = Draft(jnp.zeros((rows, gamma), jnp.int32), jnp.zeros((rows, gamma, vocabulary)))
    num_accepted, next_token = map(np.asarray, cost.simulated(rate)(logits, block, Options(gamma), jax.random.key(0)))
    for place in range(1, gamma + 1):
        expected = rate**place
        sigma = math.sqrt(expected * (1 - expected) / rows)
        assert abs((num_accepted >= place).mean() - expected) <= 4 * sigma, f"the first {place}"
    choices = np.asarray(logits).argmax(axis=-1)
    np.testing.assert_array_equal(next_token, choices[np.arange(rows), num_accepted])


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
    desk = stages._desk(target, start(target, PROMPTS, budget, options(temperature), None), options(temperature))
    drawn = [jax.random.normal(jax.random.key(seed), x.shape) for seed, x in enumerate((desk.block.probs, desk.logits))]
    tokens = jnp.arange(len(PROMPTS) * GAMMA).reshape(-1, GAMMA) + 3
    block = Draft(tokens.astype(jnp.int32), jax.nn.softmax(drawn[0]))
    return desk._replace(block=block, logits=drawn[1].at[:, :, 0].set(-0.0).at[:, :, 1].set(0.0))


@functools.cache
def built(stage: stages.Stage, repeated: bool, temperature: float = 0.0, waits: bool = True):
    """A stage compiled as its timer does it, or without a loop; without `after` unless it waits.  (count, desk) to desk."""
    run = stages._repeated.__wrapped__(stage) if repeated else _once(stage)
    step = lambda target, drafter, counted: run(target, drafter, counted, options(temperature))
    counted = (jnp.int32(1), new_desk(temperature))
    jitted = jax.jit(step, compiler_options=compiler_options())
    neglect = lambda module: mock.patch.object(
        module, "after", (lambda done, value: value) if not waits else stages.after
    )
    with neglect(stages), neglect(contexts):
        return jitted.lower(small_target(), small_drafter(), counted).compile()


def _once(stage):
    return lambda target, drafter, counted, options: (counted[0], stage(target, drafter, counted[1], options))


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


def test_products_stage():
    """One product for each linear weight and the head, of gamma + 1 rows a prompt; nothing on the desk changes."""
    desk, target = new_desk(), small_target()
    assert_same(desk_after(stages.products_stage, desk), desk)
    weights = [named_params(target)[name] for name in linear_weights(target)]
    size = sum(weight.size for weight in (*weights, target.embed_tokens.weight))
    run = lambda target, desk: stages.products_stage(target, small_drafter(), desk, options(0.0))
    assert flops_of(run, target, desk) == 2 * len(PROMPTS) * (GAMMA + 1) * size


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


def counting_stage(target, drafter, desk, options):
    return desk._replace(state=desk.state._replace(emitted=desk.state.emitted + 1))


@pytest.mark.parametrize("seconds, count", [(0.001, 400), (0.07, 5), (5.0, 1)])
def test_timer(seconds, count, monkeypatch):
    """A call of a short stage repeats it; the time of one is the call's over their number.  Here a call takes `seconds`."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=tick))  # JAX reads the real one
    monkeypatch.setattr(stages, "LAP_SECONDS", 0.08)
    state = start(small_target(), PROMPTS, 5, options(0.0), None)
    timer = stages.Timer(counting_stage, small_target(), small_drafter(), state, options(0.0))
    assert timer.compile_seconds == pytest.approx(0)
    before = int(timer._desk.state.emitted[0])
    assert timer.lap() == pytest.approx(seconds / count)
    assert int(timer._desk.state.emitted[0]) - before == count
    assert int(state.emitted[0]) == 1, "the state that was given is not donated"
