"""Answers to the exercises of tutorial 04."""

import json

import jax
import jax.numpy as jnp

import decoding
import drafter
import gemma4
from exercises import drafter as exercise
from gemma4.cache import slot_positions

# 4.1  Step 1 gets the target's hidden state and the embedding of the newest token: a and d change the first of them.  In b, c
# and e step 1 gets what it should, and the steps after it do not.
assert exercise.check_1("ad", "bce")

# 4.2  In the notebook: accepted(chain(right, ahead=lambda place: place)[0])[0], and 20 * place.  Here with fewer words.
GAMMA, LENGTH = 4, 80
target, draft_model, tokenizer = decoding.load_pair()
chapters = json.loads((decoding.load.SHIPPED / "held_out.json").read_text(encoding="utf-8"))[:40]
ids = [encoding.ids for encoding in tokenizer.encode_batch(chapters, add_special_tokens=False)]
texts = [[target.config.bos_token_id, *each[at : at + LENGTH - 1]] for each in ids for at in (0, 80, 160)]
texts = jnp.array([text for text in texts if len(text) == LENGTH][:100])
_, hidden, cache = gemma4.forward(target, texts, gemma4.init_cache(target.config, len(texts), capacity=128))


@jax.jit
def shares(target, draft_model, hidden, cache, advance):
    shared = drafter.share_cache(cache, target.config)
    state, newest, tokens = hidden[:, -1], jnp.argmax(target.logits(hidden[:, -1]), axis=-1), []
    first = newest
    keys_at = {kind: slot_positions(shared.length - 1, kv.capacity) for kind, kv in shared.donors.items()}
    for place in range(GAMMA):
        inputs = draft_model.attention_inputs(shared.length[:, None] + place * advance, keys_at)
        embedding = target.embed_tokens(newest)
        normed, state = (x[:, 0] for x in draft_model(embedding[:, None], state[:, None], shared.donors, inputs))
        newest = draft_model.argmax(normed)
        tokens.append(newest)
    drafts = jnp.stack(tokens, axis=1)
    accepted = decoding.accept_greedy(decoding.verify(target, cache, first, drafts).logits, drafts).num_accepted
    return jnp.array([(accepted > place).mean() for place in range(GAMMA)])


assert exercise.check_2(*(shares(target, draft_model, hidden, cache, advance) for advance in (0, 1, 20)))

# 4.3  The hidden state and the cache were there before the token was sampled: they know what could come.  Without the embedding
# the drafter continues a text in which the next token is missing; it would have to guess that one first.  Without the hidden
# state it still reads the text through the cache, only less well.
assert exercise.check_3(["embedding"], ["hidden state", "cache"])
