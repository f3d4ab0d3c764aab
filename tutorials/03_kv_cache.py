# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · The KV cache: slots, rings, and taking back
#
# *How can a cache forget five tokens without touching memory?*
#
# **35 minutes. Before this:** 02, one token through Gemma 4. **It explains** [cache.py](../gemma4/cache.py) and
# [rollback.py](../decoding/stages/rollback.py). **Afterwards you can**
#
# - say which slot holds which token, in both kinds of layers, and read that rule backwards;
# - compute the memory of a cache, and say what each of Gemma 4's two savings is worth;
# - prove that a rejected draft is never seen again, and find the smallest cache for which that is true.
#
# A [KV cache](glossary.md) keeps the keys and values of earlier tokens, so that a forward pass computes only those of new
# ones. In [speculative decoding](glossary.md) some of these new tokens are guesses. The target writes them all, and then has
# to forget those that were wrong.

# %%
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import gemma4
from decoding.load import SHIPPED
from exercises import kv_cache as exercise
from figures import kv_cache as figures
from figures import style
from gemma4.cache import LayerKV, slot_positions, write
from gemma4.functional import attention_mask

# %%
style.use()
target, _, tokenizer = decoding.load_pair()
config = target.config
print("layers:", *[kind.removesuffix("_attention") for kind in config.layer_types], "· window:", config.sliding_window)

# %% [markdown]
# ## A ring, watched
#
# Gemma 4 has two kinds of layers. In a **full** layer a query sees every earlier token. In a **sliding** layer it sees only
# the newest *w*, itself included: the [window](glossary.md). So a sliding layer may forget, and its cache may be small. One
# rule serves both kinds:
#
# > The token at position *p* is in [slot](glossary.md) *p* mod *capacity*.
#
# In a full layer the capacity is the longest text, and the rule says slot = position. In a sliding layer new tokens overwrite
# old ones: a [ring](glossary.md).
#
# Here is a ring with a window of 6 and 11 slots. To see what is in it, we write each token's *position* where its key would
# be. Passes of 5 tokens are a round's verification, of which only some are kept; the pass of 1 token is a plain step.
#
# **Predict:** the third pass writes positions 10 to 14. Which slots do they go to?

# %%
WINDOW, CAPACITY = 6, 11
ROUNDS = [(5, 5), (5, 5), (5, 2), (1, 1), (5, 5), (5, 1)]  # tokens written, tokens kept
kv = LayerKV(*(jnp.full((1, 1, CAPACITY, 1), -1.0) for _ in range(2)))  # [batch, KV heads, slots, head dim]
length, held, lengths = 0, [], []
for size, kept in ROUNDS:
    positions = jnp.arange(length, length + size, dtype=float).reshape(1, size, 1, 1)
    kv = write(kv, positions, positions, jnp.array([length]))
    length += kept  # this is the whole of taking back
    held.append(np.asarray(kv.key[0, 0, :, 0], int))
    lengths.append(length)
figures.ring_over_time(np.stack(held), lengths, [size for size, _ in ROUNDS], WINDOW)

# %% [markdown]
# *The picture: one row for each pass, one column for each slot; the number is the position that the slot holds after the
# pass. Pass 3 begins in slot 10 and goes on in slot 0. Of its five tokens two are kept, and the other three (hatched) stay
# where they are. Pass 4 overwrites one of them. Two are left, in slots 2 and 3.*
#
# Nothing was erased. `length` went from 15 to 12, and that is all that [rollback](glossary.md) does. Why is it enough?

# %%
before = gemma4.init_cache(config, capacity=256, chunk=5)
written = gemma4.forward(target, [[config.bos_token_id, 5, 6, 7, 8]], before).cache
after = decoding.rollback(written, before.length, jnp.array([2]))
same = [a is b for a, b in zip(jax.tree.leaves(written.layers), jax.tree.leaves(after.layers), strict=True)]
print(f"length: {before.length[0]}, written: {written.length[0]}, after rollback: {after.length[0]}")
print("the same arrays as before the rollback:", all(same))

# %% [markdown]
# ## What it costs
#
# A cache needs bytes for two vectors (key and value) × KV heads × head dimension, per token and layer that keeps them. Let us
# take Gemma 4 E2B and a text of 131,072 tokens in bfloat16. E2B saves twice. Sliding layers have rings. And its last 20 of 35
# layers keep nothing: they read the keys and values of an earlier layer.
#
# **Predict:** which of the two saves more?


# %%
def cache_bytes(config, tokens, chunk):
    """Bytes of the full and of the sliding layers.  Nothing is allocated: `eval_shape` computes shapes only."""
    cache = jax.eval_shape(lambda: gemma4.init_cache(config, 1, tokens, chunk=chunk, dtype=jnp.bfloat16))
    size = [sum(x.size * x.dtype.itemsize for x in kv) if kv else 0 for kv in cache.layers]
    sliding = [config.is_sliding(layer) for layer in range(config.num_hidden_layers)]
    return np.dot(size, np.logical_not(sliding)), np.dot(size, sliding)


e2b, tokens = gemma4.PRESETS["E2B"], 131_072
all_own = dataclasses.replace(e2b, num_kv_shared_layers=0, use_double_wide_mlp=False)
forms = {"neither": (all_own, None), "rings": (all_own, 512), "sharing": (e2b, None), "both": (e2b, 512)}
sizes = {name: cache_bytes(model, tokens, chunk) for name, (model, chunk) in forms.items()}
print({name: f"{sum(size) / 1e6:.1f} MB" for name, size in sizes.items()})
figures.memory(sizes)

# %% [markdown]
# *The picture: one bar for each form of E2B's cache at 131,072 tokens, in gigabytes, its full and its sliding layers. With
# rings the sliding part is too thin to see.*
#
# Rings save more than half of the bytes, because most layers are sliding and each needs 1,024 slots (window 512, passes of up
# to 512) instead of 131,072. Sharing saves the same part of both kinds. What is left is three full layers.

# %% [markdown]
# ## Who reads whose
#
# The pair of this page has the same two savings. `config.kv_source` says whose keys and values each layer reads.
#
# **Predict:** eight layers, of which the last four keep nothing. Layer 5 is a sliding layer. Whose keys and values does it
# read?

# %%
for layer, kv in enumerate(before.layers):
    print(f"layer {layer}:", f"keys {kv.key.shape}" if kv else "no cache")
figures.who_reads_whose(config.kv_source, [config.is_sliding(i) for i in range(config.num_hidden_layers)])

# %% [markdown]
# *The picture: a row for each layer, its mark in the column of the layer that it reads. Squares are sliding layers, circles
# full ones. Layers 0 to 3 read their own; 4, 5 and 6 read layer 2's, and 7 reads layer 3's.*
#
# A layer reads the *last* one of its own kind that has keys and values. Sliding and full layers cannot share: their heads
# have other sizes, and their keys were turned by other angles. The drafter reads from the same two layers, its
# [donors](glossary.md): tutorial 04.

# %% [markdown]
# ## The rule backwards
#
# A query must know which position each slot holds. Nothing is stored for that. If `last` is the newest position that a pass
# writes, slot *s* holds the newest position up to `last` that belongs there:
#
# > last − ((last − *s*) mod *capacity*)
#
# The formula knows nothing about rejected tokens, so it must be wrong about some slots. Let us catch it. After the third
# pass, 12 tokens are committed, and pass 4 writes position 12.
#
# **Predict:** slots 2 and 3 hold the rejected positions 13 and 14. As which positions does the formula read them?

# %%
last = 12
read_as, really = np.asarray(slot_positions(jnp.array([last]), CAPACITY)[0]), held[3]
for slot in np.flatnonzero(read_as != really):
    print(f"slot {slot} holds position {really[slot]}, and is read as {read_as[slot]}")

# %% [markdown]
# It takes them for the tokens that were there one turn of the ring before: *p − capacity*. Those two were overwritten, so the
# formula's answer is a lie. Now the mask: a query at *n* sees a slot if the position read there is at most *n* and greater
# than *n − w*.

# %%
queries = [last]
mask = np.asarray(attention_mask(jnp.array([queries]), jnp.asarray(read_as)[None], WINDOW)[0])
oldest = last - WINDOW + 1
print(f"the lies are read as {read_as[read_as != really].tolist()}; the oldest key in sight is at position {oldest}")
figures.mask_on_slots(read_as, really, mask, queries)

# %% [markdown]
# *The picture: the slots as the query at position 12 reads them. It sees positions 7 to 12 (plain blue). Hatched slots hold
# something else than the mask believes, and they are outside the window.*
#
# This is no accident. Say the last pass began at *a* and wrote *c* tokens, and *n* ≥ *a* tokens are left. A rejected slot
# holds a position of at most *a + c − 1*. If it is not overwritten, it is read as at most
#
# > *a + c − 1 − capacity*, which with capacity = *w + c* is *a − 1 − w*.
#
# The oldest key that a query at *n* or later sees is at *n − w + 1*, which is at least *a − w + 1*. The lie is too old, by
# two. In a full layer it is simpler still: the lie is a negative position, which means an empty slot.

# %% [markdown]
# ## The same with a real model
#
# Now 300 tokens of a text that the target was not trained on, in passes of 5 tokens and of 1, as above. Of a pass of 5 only
# some tokens are the text's; the others are rejected and taken back. The window is 64, so the text goes round a ring of 69
# slots four times.
#
# To see whether anybody reads a rejected slot, each pass fills all of them with `junk`. One `NaN` in a sum makes it `NaN`.
# (For slots that no query sees, `attention` puts 0 in place of the value, because 0 · `NaN` is `NaN`.)


# %%
def poisoned(cache, rejected, junk):
    """The cache with `junk` in the slots of the `rejected` positions after its length."""

    def fill(kv):
        is_rejected = (jnp.arange(kv.capacity) - cache.length[0]) % kv.capacity < rejected
        return LayerKV(*(jnp.where(is_rejected[:, None], junk, x) for x in kv))

    return cache._replace(layers=tuple(kv and fill(kv) for kv in cache.layers))


@jax.jit
def one_pass(target, cache, tokens, kept, junk):
    hidden, written = target(tokens, cache)
    cache = decoding.rollback(written, cache.length, kept[None])
    return target.logits(hidden), poisoned(cache, tokens.shape[1] - kept, junk)


# %%
REJECTED = 9  # any token
chapter = json.loads((SHIPPED / "held_out.json").read_text(encoding="utf-8"))[0]
text = [config.bos_token_id, *tokenizer.encode(chapter, add_special_tokens=False).ids][:300]


def play(chunk, junk):
    """The logits of all kept tokens, read through a cache whose rings have 64 + chunk slots."""
    cache, logits = gemma4.init_cache(config, 1, 512, chunk=chunk), []
    while (start := sum(map(len, logits))) < len(text):
        size, kept = [(5, 2), (1, 1), (5, 5), (5, 1), (1, 1)][len(logits) % 5]
        tokens = (text[start : start + kept] + size * [REJECTED])[:size]
        ours, cache = one_pass(target, cache, jnp.array([tokens]), kept, junk)
        logits.append(ours[0, :kept])
    return np.concatenate(logits)[: len(text)]


# %%
clean, with_nan = play(5, 0.0), play(5, jnp.nan)
print("NaN anywhere:", bool(np.isnan(with_nan).any()), "  bit for bit the same:", bool((clean == with_nan).all()))

# %% [markdown]
# So no pass read a rejected slot, in four turns of the ring. Are the logits *right*, too? We compare them with one pass over
# the whole text, without any cache. It adds up its sums in another order, so the last bits may differ.

# %%
reference = np.asarray(gemma4.forward(target, [text]).logits[0])
tolerance = 1e-4
error = np.abs(clean - reference).max(axis=1)
print(f"largest error of a logit: {error.max():.1e}; largest logit: {np.abs(reference).max():.1f}")

# %% [markdown]
# ## A ring that is too small
#
# The library's ring has *w* + *c* slots, 69 here. The argument above left a margin of two, of which the target can do without
# one. So let us take away *two* slots: 67. The library refuses such a pass, for good reason:

# %%
try:
    gemma4.forward(target, [text[:5]], gemma4.init_cache(config, 1, 512, chunk=3))
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# `play` calls the model itself, where nothing is checked.
#
# **Predict:** at which position of the text is the first wrong logit: near 5, near 67, or near 300?

# %%
small = np.abs(play(3, 0.0) - reference).max(axis=1)
first_wrong = int(np.argmax(small > tolerance))
print(f"first wrong logit: at position {first_wrong}; largest error after it: {small.max():.1f}")
figures.errors_by_position({"69 slots": error, "67 slots": small}, tolerance)

# %% [markdown]
# *The picture: the largest error at each position of the text; what is less than 0.00003 is rounding, and drawn there. With
# 69 slots (solid) it never leaves that line. With 67 slots (dashed) a first, small error comes when the ring is full; forty
# positions later errors are thousands of times larger than rounding.*
#
# One pass writes positions 63 to 67, and 67 mod 67 = 0: it overwrites position 0, which the query at 63, in the same pass,
# still has in its window of 64. There is no crash and no strange value, just other logits, and only in texts longer than the
# window. Tests with short prompts never see it.

# %% [markdown]
# ## What you saw
#
# - Position *p* is in slot *p* mod *capacity*, in every layer. Rings are what the rule does where the capacity is small.
# - A cache stores no positions. The rule read backwards says what a slot holds, and is wrong about rejected slots.
# - It is wrong by one whole turn, so those slots look too old to be seen. That is why rollback is `length = n`.
# - The ring needs room for the window *and* for one pass. Two slots fewer, and long texts go wrong silently.
# - Rings and sharing take E2B's cache at 131,072 tokens from 5.6 to 0.8 gigabytes.

# %%
assert (clean == with_nan).all() and error.max() < tolerance, "rejected slots were read"
assert small.max() > 100 * tolerance, "a ring of 67 slots should not work"

# %% [markdown]
# ## Exercises
#
# **3.1 Predict.** A ring has 8 slots, and 21 tokens were written, one by one. Which position is in slot 3? Write down your
# answer before you compute anything.

# %%
slot_3_holds = None  # a position
exercise.check_1(slot_3_holds)

# %% [markdown]
# **3.2 Change the code.** How many slots does the *target* need at least, for a window *w* and passes of at most *c* tokens,
# of which one or more are kept? Try `play` with other chunks, or simulate a ring with `write` as in the first section (window
# 6, passes of 5). Then write the formula.


# %%
def fewest_slots(window, chunk):
    return None


exercise.check_2(fewest_slots)

# %% [markdown]
# **3.3 Prove.** The drafter reads the cache *between* two passes: *n* ≥ *a* + 1 tokens are committed, its newest key is at
# *n* − 1, and in its convention it sees *w* + 1 keys. Write the two sides of the inequality: as which position at most a
# rejected slot is read, and which is the oldest key that the drafter sees when *n* is smallest. Then say why the library's
# ring has one slot more than your answer to 3.2.


# %%
def newest_lie(start, chunk, capacity):
    return None


def oldest_seen_by_drafter(start, window):
    return None


exercise.check_3(newest_lie, oldest_seen_by_drafter)

# %% [markdown]
# The answers are in [answers/03_kv_cache.py](answers/03_kv_cache.py).
#
# **Next:** 04, the drafter, which has no cache of its own. The proof, with one more case, is at the top of
# [cache.py](../gemma4/cache.py); [test_poison.py](../tests/properties/test_poison.py) fills the slots of the whole round with
# NaN.
