"""Answers to the exercises of tutorial 05."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
import gemma4
from exercises import clustered_head as exercise

# 5.1  Every token is in exactly one cluster, so all are found.  The 64 centroids come on top of the 2,048 tokens: a clustered
# head that searches everything does more work than a dense one.
assert exercise.check_1(1.0, (2048 + 64) * 128)

# 5.2  In the notebook: by_frequency = np.argsort(-frequency), and recall(means(by_frequency), by_frequency)[15].
target, draft_model, tokenizer = decoding.load_pair()
chapters = json.loads((decoding.load.SHIPPED / "held_out.json").read_text(encoding="utf-8"))[:40]
encodings = tokenizer.encode_batch(chapters, add_special_tokens=False)
texts = jnp.array([[2, *encoding.ids][:80] for encoding in encodings])


@jax.jit
def states_of(target, draft_model, texts):
    hidden, cache = target(texts, gemma4.init_cache(target.config, *texts.shape))
    places = jnp.broadcast_to(jnp.arange(16, 80), (len(texts), 64))
    keys_at = {kind: jnp.broadcast_to(jnp.arange(80), texts.shape) for kind in target.config.donors}
    donors = drafter.share_cache(cache, target.config).donors
    inputs = draft_model.attention_inputs(places, keys_at)
    return draft_model(target.embed_tokens(texts[:, 16:]), hidden[:, 15:-1], donors, inputs)[0].reshape(-1, 128)


states, table = np.asarray(states_of(target, draft_model, texts)), np.asarray(draft_model.embed_tokens.weight[...])
frequency = np.bincount(np.concatenate([encoding.ids for encoding in encodings]), minlength=2048)
by_frequency = np.argsort(-frequency, kind="stable")
centroids = table[by_frequency].reshape(64, 32, 128).mean(axis=1)
scores, own = states @ centroids.T, np.argsort(by_frequency)[(states @ table.T).argmax(axis=1)] // 32
rank = (scores > scores[np.arange(len(scores)), own][:, None]).sum(axis=1)
assert exercise.check_2(by_frequency, np.mean(rank < 16), frequency, states, table)
# Far better than random.  Frequent tokens are the best ones most of the time, and their means score high in nearly all states:
# the head has become a fixed list of frequent tokens.  It finds the common and never the rare; clusters by meaning find both.
is_frequent = (np.argsort(by_frequency)[(states @ table.T).argmax(axis=1)] < 512).mean()
print(f"the best token is among the 512 most frequent in {is_frequent:.0%} of the states")

# 5.3  Yes.  After a rejection the target draws from max(p - q, 0), which is p where q = 0: the correction.  After four accepted
# drafts it draws from p: the bonus token.  Each such token ends its round, so a head that misses many makes rounds short.
assert exercise.check_3(True, ["correction", "bonus token"])
