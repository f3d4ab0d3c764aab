"""Drafters for the five tiny layouts, a pair small enough to compile in seconds, and drafts by script.

The properties of decoding hold for every target and every drafter, so they are tested where a mistake shows soonest:
texts of `restless` targets hang on all that the cache holds, and a script decides which drafts are accepted.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import decoding
from decoding import DecodeState, Generation, Options
from decoding.bench.subject import Subject
from decoding.oracle.script import BY_ITSELF, scripted
from decoding.oracle.tiny import restless
from drafter import Drafter
from gemma4 import Config, Gemma4
from tests.tiny import TINY, random_target
from tests.tiny import TINY_DRAFTERS as TINY_DRAFTERS  # drafters of the tiny layouts, for those who take this pair too
from tests.tiny_pair import drafter_config, random_drafter

CLUSTERED = ("E2B", "E4B")

WINDOW, CONTEXT, VOCAB = 6, 64, 16
SMALL = Config(
    vocab_size=VOCAB,
    hidden_size=12,
    intermediate_size=16,
    layer_types=TINY["12B"].layer_types[1:],  # one sliding layer, one full layer
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    global_head_dim=8,
    sliding_window=WINDOW,
    max_position_embeddings=CONTEXT,
)


def small_target(seed: int = 18) -> Gemma4:
    """Of the first forty seeds this one writes the most varied texts."""
    return restless(random_target(SMALL, seed))


def small_drafter(seed: int = 0, convention: str = "transformers") -> Drafter:
    config = drafter_config(SMALL, clustered=False)
    text = dataclasses.replace(config.text, layer_types=SMALL.layer_types, num_kv_shared_layers=2)
    return random_drafter(dataclasses.replace(config, text=text, convention=convention), seed)


@functools.cache
def small_subject() -> Subject:
    """To be measured."""
    return Subject("a small pair", small_target(), small_drafter(), texts=[])


# -- drafts by script --------------------------------------------------------------------------------------------------


def script_of(prompts: list[list[int]], texts: list[list[int]], propose: Callable[[int, int], int]) -> np.ndarray:
    """[row, position]: the token to draft there; propose(index in the text, its token) is it.

    BY_ITSELF, which also stands at all positions outside the texts, leaves the choice to the drafter.
    """
    longest = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    script = np.full((len(prompts), max(longest, CONTEXT) + 16), BY_ITSELF, np.int32)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens = [propose(index, int(token)) for index, token in enumerate(text)]
        script[row, len(prompt) : len(prompt) + len(text)] = tokens
    return script


@functools.partial(jax.jit, static_argnames="options", donate_argnames="state")
def scripted_step(
    target: Gemma4, drafter: Drafter, script: jax.Array, state: DecodeState, options: Options
) -> DecodeState:
    """`decoding.speculative_step`, but where the script has a token for a position the draft stage proposes that."""

    speculative = importlib.import_module("decoding.speculative")
    with mock.patch.object(speculative, "draft", scripted(decoding.draft, script)):
        return speculative.round_of(target, drafter, state, options)


def generate_scripted(
    target: Gemma4,
    drafter: Drafter,
    script: np.ndarray,
    prompts: list[list[int]],
    *,
    on_state: Callable[[DecodeState], None] = lambda state: None,
    **settings,
) -> Generation:
    """`decoding.generate` with drafts by script.  `on_state` sees the state after the prefill and after every round."""
    module, loops = (importlib.import_module(f"decoding.{name}") for name in ("generate", "loops"))
    start = module.start

    def seen_start(*args) -> DecodeState:
        state = start(*args)
        on_state(state)
        return state

    def compiled(_, options, target, drafter) -> Callable[[tuple], tuple]:
        def some_rounds(state_and_most):
            state, most = state_and_most
            log = []
            while len(log) < most and not state.done.all():
                state = scripted_step(target, drafter, jnp.asarray(script), state, options)
                on_state(state)
                log.append(jax.device_get(state.last))
            stacked = jax.tree.map(lambda *rows: np.stack(rows), *log) if log else None  # the call ahead of the end
            return state, loops.Report(stacked, len(log), jax.device_get(state.done))

        return some_rounds

    with mock.patch.object(module, "start", seen_start), mock.patch.object(loops, "compiled", compiled):
        return decoding.generate(target, drafter, prompts, **settings)
