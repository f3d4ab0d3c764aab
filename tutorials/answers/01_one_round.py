"""Answers to the exercises of tutorial 01.  Run it in the folder tutorials: `python answers/01_one_round.py`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import decoding

sys.path.insert(0, str(Path(__file__).parents[1]))
from exercises.one_round import check_1, check_2, check_3

target, draft_model, tokenizer = decoding.load_pair()
prompt = [target.config.bos_token_id, *tokenizer.encode("And it came to pass", add_special_tokens=False).ids]

# 1.1  Two accepted drafts and a correction; four accepted drafts and the bonus token.
assert check_1(if_third_is_refused=3, if_none_is_refused=5)

# 1.2  Tokens a pass are best with the largest γ, because more drafts can only add accepted ones.  Tokens a second are best
# with a smaller γ: every draft costs one draft step, and late drafts are seldom accepted, since all before them must be, too.
tokens_per_pass = {}
for gamma in (1, 2, 4, 8):
    out = decoding.generate(target, draft_model, prompt, max_new_tokens=48, draft_length=gamma, loop="plain")
    tokens_per_pass[gamma] = out.stats.tokens_per_round
assert check_2(tokens_per_pass)

# 1.3  The text is the same, since `accept_greedy` keeps a draft only where it equals the target's own choice, and adds that
# choice where it does not.  Where the target does say " the", a round gains one token.
verify = jax.jit(decoding.verify)
(the,) = tokenizer.encode(" the", add_special_tokens=False).ids
state = decoding.prefill(target, [prompt], max_new_tokens=64)
cache, newest, text, passes = state.cache, state.token, state.token.tolist(), 0
while len(text) < 48:
    drafts = jnp.full((1, 4), the, jnp.int32)
    verified, passes = verify(target, cache, newest, drafts), passes + 1
    num_accepted, newest = decoding.accept_greedy(verified.logits, drafts)
    text += [*drafts[0, : int(num_accepted[0])].tolist(), int(newest[0])]
    cache = decoding.rollback(verified.cache, cache.length, num_accepted + 1)
assert check_3(text[:48], passes, because="b")
