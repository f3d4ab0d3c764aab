"""Many requests in one process: memory and compiled programs stay bounded."""

import dataclasses
import functools
import random

import jax
import pytest

import decoding
from decoding import Sampling
from decoding.fast import jit
from decoding.fast.jit import jit_flat
from decoding.training.text import train_tokenizer
from gemma4.config import FULL, SLIDING
from tests.models import SENTENCES, TINY, drafter_config, random_drafter, random_target, small_target

REQUESTS, WARM, MAX_GROWTH, MAX_PROGRAMS = 500, 200, 300 << 20, 40


@pytest.fixture
def compiled(monkeypatch):
    """The names of all programs that XLA is asked for."""
    names, compiler = [], pytest.importorskip("jax._src.compiler")
    whole = compiler.compile_or_get_cached

    def counted(backend, computation, *args, **settings):
        names.append(str(computation.operation.attributes["sym_name"]))
        return whole(backend, computation, *args, **settings)

    monkeypatch.setattr(compiler, "compile_or_get_cached", counted)
    return names


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def pair() -> tuple:
    """A clustered drafter, one sliding and two full layers, and a context that lets the cache grow twice."""
    config = dataclasses.replace(
        TINY["E2B"],
        vocab_size=320,
        vocab_size_per_layer_input=320,
        layer_types=(SLIDING, FULL, FULL),
        num_kv_shared_layers=1,
        max_position_embeddings=1024,
    )
    small = drafter_config(config, clustered=True)
    text = dataclasses.replace(small.text, layer_types=(SLIDING, FULL), num_kv_shared_layers=2)
    return random_target(config), random_drafter(dataclasses.replace(small, text=text), seed=1)


@pytest.mark.slow
def test_random_requests(compiled):
    """Whatever their prompts, budgets, sampling, end tokens and stop strings are."""
    models, tokenizer, rng = pair(), train_tokenizer(SENTENCES, 320), random.Random(0)
    keys = list(jax.random.split(jax.random.key(0), REQUESTS))
    compiled.clear()  # those that made the weights and the keys
    memory = 0
    for number in range(REQUESTS):
        length = rng.choice([rng.randint(1, 60), rng.randint(1, 400)])
        top_k, top_p = rng.choice([0, rng.randint(1, 300)]), rng.choice([1.0, rng.uniform(0.1, 1)])
        decoding.generate(
            *models,
            [2, *(rng.randint(3, 300) for _ in range(length))],
            max_new_tokens=rng.choice([rng.randint(1, 40), rng.randint(1, 40), rng.randint(1, 300)]),
            sampling=Sampling(rng.choice([0.0, rng.uniform(0.1, 2)]), top_k, top_p),
            eos_ids=rng.sample(range(320), rng.randint(0, 5)),
            stop_strings=rng.choice([(), ("and",), ("God", "the ")]),
            tokenizer=tokenizer,
            key=keys[number],
        )
        if number == WARM:
            memory = resident()
    assert resident() - memory < MAX_GROWTH
    assert len(compiled) <= MAX_PROGRAMS, sorted(compiled)


def test_programs_are_dropped(monkeypatch):
    """The oldest first; one that was dropped is compiled again when it is asked for."""
    monkeypatch.setattr(jit, "MAX_PROGRAMS", 3)
    monkeypatch.setattr(jit, "_kept", type(jit._kept)())
    traced = []

    def run(number, target, state, options):
        traced.append(number)
        return state + number

    functions = [functools.partial(run, number) for number in range(6)]
    for function in functions:
        assert (
            jit_flat(function, decoding.Options(), small_target())(jax.numpy.zeros(2)).tolist()
            == [function.args[0]] * 2
        )
        assert sum(kept._cache_size() for kept in jit._kept.values()) <= 3
    jit_flat(functions[5], decoding.Options(), small_target())(jax.numpy.zeros(2))
    assert traced == [0, 1, 2, 3, 4, 5]
    jit_flat(functions[0], decoding.Options(), small_target())(jax.numpy.zeros(2))
    assert traced[-1] == 0


def test_settings_that_greedy_decoding_does_not_read_are_one_program():
    greedy = {jax.tree.structure(Sampling(0.0, top_k, top_p)) for top_k in (0, 7) for top_p in (1.0, 0.5)}
    sampled = {jax.tree.structure(Sampling(1.0, top_k, top_p)) for top_k in (0, 7) for top_p in (1.0, 0.5)}
    assert (len(greedy), len(sampled)) == (1, 4)
