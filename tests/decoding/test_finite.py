"""Damaged weights and overflows end a generation with one error that names them."""

import jax.numpy as jnp
import pytest

import decoding
from decoding.finite import NotFinite, not_finite
from decoding.generation import LOOPS
from gemma4.checkpoints.params import named_params, with_params
from tests.models import TINY, random_target, small_drafter, small_target


def damaged(name: str, index: tuple, value: float):
    target = small_target()
    return with_params(target, {name: named_params(target)[name].at[index].set(value)})


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_no_prompt_reads(loop, value):
    """Its logit is not finite, in the first round already."""
    target = damaged("embed_tokens.weight", (11,), value)
    rounds = []
    with pytest.raises(
        NotFinite, match=r"the target's weight embed_tokens.weight holds .*(nan|inf) at \[11, 0\].*fetch"
    ):
        settings = {"max_new_tokens": 40, "loop": loop, "on_round": rounds.append}
        decoding.generate(target, small_drafter(), [2, 9, 4], draft_length=2, **settings)
    assert len(rounds) <= 1
    with pytest.raises(NotFinite, match="embed_tokens.weight"):
        decoding.generate_autoregressive(target, [2, 9, 4], max_new_tokens=40, loop=loop)


def test_a_weight_that_the_prompt_reads():
    with pytest.raises(NotFinite, match=r"weight layers.1.mlp.up_proj.weight holds .*nan at \[0, 1\]"):
        decoding.prefill(damaged("layers.1.mlp.up_proj.weight", (0, 1), float("nan")), [2, 9, 4], max_new_tokens=4)


def test_finite_weights_overflow():
    target = random_target(TINY["12B"], dtype=jnp.float16)
    message = "numbers are not finite in float16, and its weights are: they overflow; load the target as float32"
    assert message in str(not_finite(target))
