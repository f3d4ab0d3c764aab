"""How good a pair is on held-out text: tokens per pass of the target, and how often drafts are accepted, in the live loop."""

import jax
from tokenizers import Tokenizer

from decoding.generation import generate
from decoding.sampling import Sampling
from decoding.training.text import bos_of
from drafter import Drafter
from gemma4 import Gemma4

PROMPT_TOKENS, NEW_TOKENS, DRAFT_LENGTH = 48, 120, 4


def held_out_prompts(
    target: Gemma4, tokenizer: Tokenizer, documents: list[str], length: int = PROMPT_TOKENS
) -> list[list[int]]:
    """The first tokens of each document, BOS included."""
    encoded = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [[bos_of(target.config), *encoding.ids[: length - 1]] for encoding in encoded]


def live(
    target: Gemma4,
    draft_model: Drafter,
    prompts: list[list[int]],
    temperature: float,
    acceptance: str = "token",
    draft_length: int = DRAFT_LENGTH,
) -> dict:
    """One live run of the speculative loop over all prompts at once, with exact acceptance."""
    run = generate(
        target,
        draft_model,
        prompts,
        max_new_tokens=NEW_TOKENS,
        draft_length=draft_length,
        sampling=Sampling(temperature),
        acceptance=acceptance,
        key=jax.random.key(0),
    )
    return run.stats.as_dict()
