"""Damaged weights and overflows end a generation with one error that names them."""

import jax.numpy as jnp
import pytest

import decoding
from decoding import Sampling
from decoding.finite import NotFinite, not_finite
from decoding.generation import LOOPS
from gemma4.checkpoints.params import named_params, with_params
from tests.models import (
    TINY,
    TINY_DRAFTERS,
    random_drafter,
    random_target,
    small_drafter,
    small_target,
)


@pytest.fixture(scope="module")
def clustered_pair():
    """E2B's layout."""
    return random_target(TINY["E2B"]), random_drafter(TINY_DRAFTERS["E2B"], seed=1)


def all_nan(module, name: str):
    return with_params(module, {name: jnp.full_like(named_params(module)[name], jnp.nan)})


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


def without_numbers(draft_model, name: str):
    return with_params(draft_model, {name: named_params(draft_model)[name].at[..., 3].set(jnp.nan)})


@pytest.mark.parametrize("loop", LOOPS)
def test_a_weight_of_a_drafter_that_samples(loop):
    """The error names the drafter's tensor; what the target emitted before stays."""
    rounds, spoilt = [], without_numbers(small_drafter(), "norm.weight")
    settings = {"max_new_tokens": 40, "loop": loop, "on_round": rounds.append, "sampling": Sampling(1.0)}
    with pytest.raises(
        NotFinite, match=r"the drafter's weight norm.weight holds .*nan at .*fetch the checkpoint again"
    ):
        decoding.generate(small_target(), spoilt, [2, 9, 4], draft_length=2, **settings)
    assert len(rounds) == 1, "the prefill's"


@pytest.mark.parametrize("name", ["pre_projection.weight", "post_projection.weight", "embed_tokens.weight"])
def test_greedy_drafts_of_a_damaged_drafter_cost_only_time(name):
    """The target rejects them, and the text is its own."""
    settings = {"max_new_tokens": 20, "draft_length": 2}
    spoilt = without_numbers(small_drafter(), name)
    text = decoding.generate(small_target(), spoilt, [2, 9, 4], **settings).tokens[0]
    assert text.tolist() == decoding.generate(small_target(), small_drafter(), [2, 9, 4], **settings).tokens[0].tolist()


def test_a_clustered_head(clustered_pair):
    target, draft_model = clustered_pair
    spoilt, settings = all_nan(draft_model, "embed_tokens.weight"), {"max_new_tokens": 20, "draft_length": 2}
    with pytest.raises(NotFinite, match="the drafter's weight embed_tokens.weight holds .*nan"):
        decoding.generate(target, spoilt, [2, 9, 4], sampling=Sampling(1.0), **settings)
    texts = [decoding.generate(target, each, [2, 9, 4], **settings).tokens[0] for each in (draft_model, spoilt)]
    assert texts[0].tolist() == texts[1].tolist()


def test_centroids_only_choose_what_is_scored(clustered_pair):
    """Damaged ones choose badly.  The logits are finite, and the text is the target's."""
    target, draft_model = clustered_pair
    spoilt = all_nan(draft_model, "masked_embedding.centroids.weight")
    texts = [
        decoding.generate(target, model, [2, 9, 4], max_new_tokens=20, draft_length=2).tokens[0].tolist()
        for model in (draft_model, spoilt)
    ]
    assert texts[0] == texts[1]


def test_finite_weights_overflow():
    target = random_target(TINY["12B"], dtype=jnp.float16)
    message = "the target's numbers are not finite in float16, and the weights are: they overflow; load as float32"
    assert message in str(not_finite(target))
    assert "the target's or the drafter's numbers" in str(not_finite(target, small_drafter()))
