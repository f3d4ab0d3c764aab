"""Generations whose drafts follow a script, so that a test decides which of them are accepted."""

import functools
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import decoding.round
from decoding import DecodeState, Generation, Options, generation
from decoding.oracle.script import BY_ITSELF, scripted
from decoding.stages.draft import draft
from drafter import Drafter
from gemma4 import Gemma4
from tests.models import SMALL_CONTEXT


def script_of(prompts: list[list[int]], texts: list[list[int]], propose: Callable[[int, int], int]) -> np.ndarray:
    """[row, position]: the token to draft there, which is propose(index in the text, the text's token).

    BY_ITSELF, as at all positions outside the texts, leaves the choice to the drafter.
    """
    longest = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    script = np.full((len(prompts), max(longest, SMALL_CONTEXT) + 16), BY_ITSELF, np.int32)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens = [propose(index, int(token)) for index, token in enumerate(text)]
        script[row, len(prompt) : len(prompt) + len(text)] = tokens
    return script


@functools.partial(jax.jit, donate_argnames="state")
def scripted_step(
    target: Gemma4, draft_model: Drafter, script: jax.Array, state: DecodeState, options: Options
) -> DecodeState:
    """`decoding.speculative_step`, but where the script has a token for a position, the draft stage proposes that token."""
    with mock.patch.object(decoding.round, "draft", scripted(draft, script)):
        return decoding.round.speculative_round(target, draft_model, state, options)


def generate_scripted(
    target: Gemma4,
    draft_model: Drafter,
    script: np.ndarray,
    prompts: list[list[int]],
    *,
    on_state: Callable[[DecodeState], None] = lambda state: None,
    **settings,
) -> Generation:
    """`decoding.generate` by the plain loop, with scripted drafts.

    on_state: called with the state after the prefill and after every round.
    """

    def watched_prefill(*args, **settings) -> DecodeState:
        state = decoding.prefill(*args, **settings)
        on_state(state)
        return state

    def step(target, draft_model, state, options) -> DecodeState:
        state = scripted_step(target, draft_model, jnp.asarray(script), state, options)
        on_state(state)
        return state

    with (
        mock.patch.object(generation, "prefill", watched_prefill),
        mock.patch.object(generation, "speculative_step", step),
    ):
        return decoding.generate(target, draft_model, prompts, loop="plain", **settings)
