"""Greedy text equals transformers' greedy text, token by token, with and without a drafter, on 120 random prompts.

Thirty prompt lengths, 1 to 30 (windows are 8), six for each of the five layouts, four prompts of each.  transformers
reads prompts of one length at a time, unpadded; we read all 24 of a layout as one ragged batch.
"""

import dataclasses

import numpy as np
import pytest
import torch

import decoding
from tests.models import TINY, TINY_DRAFTERS, VOCAB, random_drafter, random_target, random_tokens, restless
from tests.parity.torch_models import torch_target

LAYOUTS = list(TINY)
PROMPTS_PER_LENGTH, NEW_TOKENS, DRAFT_LENGTH = 4, 24, 3


def torch_text(model, prompts: np.ndarray) -> list[np.ndarray]:
    tokens = torch.tensor(prompts)
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    return list(out[:, prompts.shape[1] :].numpy())


@pytest.mark.parametrize("layout", [LAYOUTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS[1:])])
def test_greedy_text_equals_transformers(layout, near_ties):
    """By the plain loop and by the default one, float32.

    A difference is excused only where the two best logits are within 1e-4, and counted.
    """
    config = dataclasses.replace(TINY[layout], eos_token_ids=())
    target, draft_model = restless(random_target(config, seed=5)), random_drafter(TINY_DRAFTERS[layout], seed=6)
    model, prompts, expected = torch_target(target), [], []
    for length in range(LAYOUTS.index(layout) + 1, 31, len(LAYOUTS)):
        tokens = random_tokens(PROMPTS_PER_LENGTH, length, seed=7)
        prompts += tokens.tolist()
        expected += torch_text(model, tokens)
    for loop in ("plain", "streamed"):
        settings = {"max_new_tokens": NEW_TOKENS, "loop": loop}
        alone = decoding.generate_autoregressive(target, prompts, **settings)
        speculative = decoding.generate(target, draft_model, prompts, draft_length=DRAFT_LENGTH, **settings)
        for row, prompt in enumerate(prompts):
            for what, ours in (("autoregressive", alone), ("speculative", speculative)):
                what = f"{layout}, prompt {row}, {what}, {loop}"
                near_ties.compare(target, prompt, ours.tokens[row], expected[row], what)
    assert len(prompts) == 24 and all(len(text) == NEW_TOKENS for text in expected)
    assert len(set(np.concatenate(expected).tolist())) > VOCAB / 2, "texts too monotonous to show a mistake"
