"""What `decoding`'s calls refuse, before anything runs."""

import jax
import jax.numpy as jnp
import pytest

import decoding
import gemma4
from decoding.generate import LONGEST_DRAFT
from tests.tiny import TINY, random_target
from tests.tiny_pair import drafter_config, random_drafter

CONTEXT = TINY["12B"].max_position_embeddings
PROMPT = [2, 5, 7]


@pytest.fixture(scope="module")
def pair():
    target = random_target(TINY["12B"])
    return target, random_drafter(drafter_config(target.config, clustered=False))


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (PROMPT, {"draft_length": 0}, "draft_length: expected 1 to 32 tokens a round, got 0"),
        (PROMPT, {"draft_length": LONGEST_DRAFT + 1}, "draft_length: expected 1 to 32 tokens a round, got 33"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (
            PROMPT,
            {"max_new_tokens": CONTEXT - 2},
            "the prompt has 3 tokens, and 126 new ones .* at most 125 new tokens",
        ),
        ([PROMPT, PROMPT * 20], {"max_new_tokens": 80}, "prompt 1 has 60 tokens, and 80 new ones .* at most 68 new"),
        ([], {}, "the prompt is empty: expected at least one token"),
        ([PROMPT, []], {}, "prompt 1 is empty: expected at least one token"),
        ([64], {}, r"token id 64 is out of range: this model's vocabulary is 0\.\.63"),
        ([-1], {}, r"token id -1 is out of range: this model's vocabulary is 0\.\.63"),
        (PROMPT, {"sampling": decoding.Sampling(-1.0)}, "temperature: expected a number from 0"),
        (
            PROMPT,
            {"sampling": decoding.Sampling(1.0, top_p=0.0)},
            r"top_p: expected a share of probability in \(0, 1\]",
        ),
        (PROMPT, {"draft_sampling": decoding.Sampling(1.0, top_k=-1)}, "top_k: expected a number of tokens"),
    ],
)
def test_generate(pair, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        decoding.generate(*pair, prompt, **settings)
    if not {"draft_length", "draft_sampling"} & settings.keys():
        with pytest.raises(ValueError, match=message):
            decoding.generate_autoregressive(pair[0], prompt, **settings)


def test_generate_with_the_drafter_of_another_target(pair):
    other = random_drafter(drafter_config(TINY["31B"], clustered=False))
    with pytest.raises(ValueError, match=r"drafter and target do not fit \(.*KV heads: drafter 8, target 2"):
        decoding.generate(pair[0], other, PROMPT)


@pytest.mark.parametrize("is_jitted", [False, True])
def test_more_drafts_than_the_cache_takes_at_once(pair, is_jitted):
    cache = gemma4.init_cache(pair[0].config, 1, 64, chunk=4)
    verify = jax.jit(decoding.verify) if is_jitted else decoding.verify
    token, drafts = jnp.zeros(1, jnp.int32), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="5 tokens in one forward, but this cache takes at most 4 at a time"):
        verify(pair[0], cache, token, drafts)
