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
# # 04 · The drafter
#
# *How can a model without keys and values of its own guess four tokens?*
#
# **30 minutes. Before this:** 03, the KV cache. **It explains** [drafter/model.py](../drafter/model.py),
# [shared_cache.py](../drafter/shared_cache.py) and [draft.py](../decoding/stages/draft.py). **Afterwards you can**
#
# - write one draft step, and the chain of four;
# - say what the [drafter](glossary.md) gets from the target, and what each of these gifts is worth;
# - recognise the usual mistakes in a drafter by the drafts that they spoil.
#
# A small model that shares nothing with the target would have to read the whole text itself, and would need a cache of its
# own. Gemma 4's [MTP drafter](glossary.md) does neither. The target has read the text, so the drafter uses what the target
# made of it.

# %%
import json

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
import gemma4
from decoding.sampling import Sampling, token_probs
from exercises import drafter as exercise
from figures import drafter as figures
from figures import style
from gemma4.cache import slot_positions

# %%
style.use()
GAMMA, LENGTH = 4, 80  # drafts a round, tokens in each text
target, draft_model, tokenizer = decoding.load_pair()
config = target.config
for name, model in {"target": target, "drafter": draft_model}.items():
    print(
        f"{name}: {sum(x.size for x in jax.tree.leaves(model)) / 1e6:.1f} million numbers, {len(model.layers)} layers"
    )
print("a layer of the drafter has", *[name for name in vars(draft_model.layers[0].self_attn) if name.endswith("proj")])

# %% [markdown]
# The drafter's layers have `q_proj` and `o_proj`, but neither `k_proj` nor `v_proj`: they ask, and have no answers of their
# own.
#
# ## A hundred texts
#
# To measure how good drafts are we need many texts. Here are 100 pieces of 80 tokens, none of them used in training, read by
# the target in one batch. For each text we keep three things: the cache, the hidden state of the last token, and the target's
# next token, which is not in the cache yet.


# %%
@jax.jit
def read(target, tokens):
    """The hidden states after the final norm, those before it, and the cache."""
    seen = {}
    cache = gemma4.init_cache(target.config, len(tokens), capacity=128)
    hidden, cache = target(tokens, cache, lambda name, value: seen.setdefault(name, value))
    return hidden, seen[f"layers.{len(target.layers) - 1}.output"], cache


chapters = json.loads((decoding.load.SHIPPED / "held_out.json").read_text(encoding="utf-8"))[:40]
ids = [encoding.ids for encoding in tokenizer.encode_batch(chapters, add_special_tokens=False)]
texts = [[config.bos_token_id, *each[at : at + LENGTH - 1]] for each in ids for at in (0, 80, 160)]
texts = jnp.array([text for text in texts if len(text) == LENGTH][:100])

# %%
hiddens, before_norm, cache = read(target, texts)
token = jnp.argmax(target.logits(hiddens[:, -1]), axis=-1)
shared = drafter.share_cache(cache, config)
print(
    "the cache holds", int(shared.length[0]), "tokens of each text; the next one is at position", int(shared.length[0])
)
for kind, kv in shared.donors.items():
    print(f"{kind}: keys and values of layer {config.donors[kind]}, {kv.key.shape}")

# %% [markdown]
# `share_cache` copies nothing. It picks two of the target's layers, the [donors](glossary.md): the last sliding and the last
# full layer that have keys and values. The drafter's sliding layers read the one, its full layer reads the other.
#
# Before we look inside, here is what the library's `draft` makes of the first text, and what each of its four steps is given:

# %%
right = hiddens[:, -1]
library = decoding.draft(target, draft_model, token, right, shared, jax.random.key(0), draft_length=GAMMA)
words = [tokenizer.decode([int(i)]) for i in texts[0]]
first, drafted = tokenizer.decode([int(token[0])]), [tokenizer.decode([int(i)]) for i in library.tokens[0]]
print("…", "".join(words[-12:]), "|", first, "|", *drafted)
figures.draft_chain(first, drafted, words[-10:], LENGTH)

# %% [markdown]
# *The picture: four draft steps. From below comes the embedding of the newest token, from the left a hidden state, the first
# time the target's, then the drafter's own. Upwards goes the drafted word. All four read one strip of the target's cache
# (dotted).*
#
# ## One step
#
# A draft step gets two vectors of the target's width: the target's **embedding** of the newest token, and a **hidden state**.
# In the first step that is the target's own, the one that *predicted* this token. Both together go through a linear map, then
# through the layers. At the end stand a head and a map back to the target's width, for the next step:
#
#     x           = pre_projection([embedding ; hidden])
#     x           = layers(x), with the donors' keys and values
#     logits      = head(norm(x))
#     next hidden = post_projection(norm(x))
#
# Here it is once more, written out so that we can change it. `ahead` moves the position; normally it is 0.


# %%
@jax.jit
def step(draft_model, embedding, hidden, shared, ahead=0):
    """Logits, the next hidden state, and the queries of the last layer."""
    seen = {}
    keys_at = {kind: slot_positions(shared.length - 1, kv.capacity) for kind, kv in shared.donors.items()}
    inputs = draft_model.attention_inputs(shared.length[:, None] + ahead, keys_at)
    normed, next_hidden = draft_model(
        embedding[:, None], hidden[:, None], shared.donors, inputs, lambda name, value: seen.setdefault(name, value)
    )
    return draft_model.logits(normed[:, 0]), next_hidden[:, 0], seen["layers.3.query"]


# %% [markdown]
# ## The chain
#
# Four steps in a row. Each takes the token that the step before it drafted, and the hidden state that it returned. The
# arguments are for the experiments below: they say which hidden state and which embedding a step really gets.


# %%
def chain(
    hidden, shared=shared, ahead=lambda place: 0, next_hidden=lambda returned: returned, embed=target.embed_tokens
):
    newest, tokens, distributions, queries = token, [], [], []
    for place in range(GAMMA):
        logits, returned, query = step(draft_model, embed(newest), hidden, shared, ahead(place))
        newest, hidden = jnp.argmax(logits, axis=-1), next_hidden(returned)
        tokens.append(newest)
        distributions.append(token_probs(logits, Sampling(temperature=1.0)))
        queries.append(query)
    return tuple(jnp.stack(each, axis=1) for each in (tokens, distributions, queries))


# %%
drafts, draft_probs, queries = chain(right)
print("the same drafts as the library's, in all 100 texts:", bool((library.tokens == drafts).all()))

# %% [markdown]
# ## One position for all
#
# Step 2 drafts the token after the one that step 1 drafted, and yet it stands at the same position. No key and no value of a
# draft exists, because drafting writes nothing; the newest key is at *n* − 1 for all steps. So the mask is the same four
# times, and Gemma 4's drafter was made to use the same RoPE angle, too.
#
# **Predict:** same keys, same mask, same position. Do the four steps look at the same tokens?

# %%
key = shared.donors["full_attention"].key[0, 0, :LENGTH]  # of text 0
scores = jnp.einsum("tnh,sh->tns", queries[0, :, 0], key)
weights = jax.nn.softmax(scores, axis=-1).mean(axis=1)  # over heads
print("weight on the 24 newest tokens, by step:", *[f"{share:.2f}" for share in weights[:, -24:].sum(axis=1)])
figures.looks(np.asarray(weights[:, -24:]), [word.strip() or repr(word) for word in words[-24:]])

# %% [markdown]
# *The picture: for text 0, attention weights in the drafter's full layer, a row for each step, a column for each of the
# newest tokens. The keys are the same in all rows; the dark places are not.*
#
# They do not: the query is made from the two vectors that come in, and these differ from step to step.
#
# ## How good are they?
#
# The target verifies all drafts in one pass. Greedy drafts are accepted as long as they are the target's own choice. We count
# in how many texts the first draft is accepted, in how many the first two, and so on.

# %%
verify = jax.jit(decoding.verify)


def accepted(drafts):
    """For each place: the share of texts in which the drafts up to it are accepted.  Also what the round emits."""
    logits = verify(target, cache, token, drafts).logits
    result = decoding.accept_greedy(logits, drafts)
    emitted = decoding.stages.emit.with_next_token(drafts, result.num_accepted, result.next_token)
    return np.array([(result.num_accepted > place).mean() for place in range(GAMMA)]), emitted, result.num_accepted


shares, emitted, _ = accepted(drafts)
print("accepted up to draft 1, 2, 3, 4:", *[f"{share:.2f}" for share in shares])

# %% [markdown]
# **Predict:** the drafter gets three things: an embedding, a hidden state, a cache. Which loss hurts the first draft most?
# Write down an order before you run the cell, which takes them away in turn.

# %%
empty = shared._replace(donors=jax.tree.map(jnp.zeros_like, shared.donors))
cases = {
    "as it should be": drafts,
    "no cache": chain(right, shared=empty)[0],
    "no hidden state": chain(0 * right)[0],
    "no embedding": chain(right, embed=lambda newest: 0 * target.embed_tokens(newest))[0],
    "another text's hidden state": chain(jnp.roll(right, 1, axis=0))[0],
    "taken before the final norm": chain(before_norm[:, -1])[0],
}
measured = {name: accepted(each)[0] for name, each in cases.items()}
figures.acceptance(measured)

# %% [markdown]
# *The picture: four columns, one for each draft, with a bar for each case: the share of texts in which the drafts up to this
# one are accepted. The first bar (plain) is the drafter as it should be.*
#
# Without the embedding almost nothing is left: the hidden state tells what *could* come, and only the embedding tells what
# *did*. Without the cache, half of the first drafts are still right, but the chain falls apart. The hidden state is worth
# about 25 points; one of another text is about as bad as none.
#
# The last case is a mistake of several engines ([known bugs](reference/known_bugs.md), `hidden-before-the-final-norm`). It
# leaves a drafter that works, only worse, and nothing fails.

# %% [markdown]
# ## And the text?
#
# **Predict:** the drafts of six cases differ. In how many of them does the round emit tokens that the target would not have
# chosen?

# %%
for name, each in cases.items():
    _, theirs, count = accepted(each)
    both = jnp.minimum(count, accepted(drafts)[2]) + 1  # tokens that both rounds emit
    agree = jnp.where(jnp.arange(GAMMA + 1) < both[:, None], theirs == emitted, True).all()
    print(f"{name:28} tokens per round {float(count.mean()) + 1:.2f}   the same text: {bool(agree)}")

# %% [markdown]
# In none. Each round emits a beginning of the target's own text, a longer or a shorter one. That is why a wrong hidden state
# is hard to find: every test of the *text* passes. Only the acceptance tells.
#
# ## Does the chain get tired?
#
# From step 2 on, the drafter feeds on its own guesses. Let us look at the distributions along the chain: their entropy, in
# bits, and the probability that the target accepts a *sampled* draft there, Σ min(*p*, *q*) (tutorial 06 proves it).
#
# **Predict:** the shares above fall from draft to draft. Does Σ min(*p*, *q*) fall, too?

# %%
logits = verify(target, cache, token, drafts).logits[:, :GAMMA]
target_probs = token_probs(logits, Sampling(temperature=1.0))
overlap = np.asarray(jnp.minimum(target_probs, draft_probs).sum(axis=-1).mean(axis=0))
bits = [
    np.asarray(-jax.scipy.special.xlogy(p, p).sum(axis=-1).mean(axis=0)) / np.log(2)
    for p in (draft_probs, target_probs)
]
print("probability of acceptance, by draft:", *[f"{each:.2f}" for each in overlap])
print("product of the first 2, 3, 4:       ", *[f"{each:.2f}" for each in np.cumprod(overlap)[1:]])
figures.along_the_chain(bits[0], bits[1], overlap)

# %% [markdown]
# *The picture: left, the entropy of the target's and of the drafter's distribution at each draft; right, the probability that
# a sampled draft is accepted there.*
#
# It does not fall. *If* the drafts so far are the text, the next one is as good as the first; the drafter is neither more nor
# less sure than the target. What falls is the chance that the whole chain stands: a product.
#
# ## Two conventions
#
# With *n* tokens in the cache, is the query at *n* or at *n* − 1, and how many keys does it see in a sliding layer? Published
# engines disagree, and Google's documentation does not say. `drafter.Config.convention` has both.

# %%
other = drafter.load(decoding.load.SHIPPED / "drafter", convention="vllm")
theirs = decoding.draft(target, other, token, right, shared, jax.random.key(0), draft_length=GAMMA).tokens
print(f"the first drafts that differ: {(theirs != library.tokens)[:, 0].mean():.2f}")
print("accepted, transformers:", *[f"{share:.2f}" for share in shares])
print("accepted, vLLM:        ", *[f"{share:.2f}" for share in accepted(theirs)[0]])
figures.conventions(length=20, window=8)

# %% [markdown]
# *The picture: both conventions for 20 tokens and a window of 8, one row each; plain positions are seen, the triangle is the
# query.*
#
# The shipped drafter was trained with the first. The other one changes a few first drafts in a hundred: enough to confuse you
# when you compare two engines token by token, and too little to notice in the speed.

# %% [markdown]
# ## What you saw
#
# - The drafter has queries only. Keys and values are those of two of the target's layers, and nothing is written.
# - All steps of a round stand at one position and see one mask. A step differs from the next by its two input vectors.
# - The embedding says which token came, the hidden state what the target made of the text, the cache what stands there.
# - A wrong hidden state costs acceptance and never changes the text, so only acceptance reveals it.
# - Along the chain each draft is as good as the one before, given that one; what falls is the product.

# %%
assert (library.tokens == drafts).all() and np.allclose(
    draft_probs[:, 0],
    token_probs(drafter.forward(draft_model, target.embed_tokens(token), right, shared)[0], Sampling(temperature=1.0)),
    atol=1e-5,
)
assert measured["as it should be"][0] > max(share[0] for name, share in measured.items() if name != "as it should be")

# %% [markdown]
# ## Exercises
#
# **4.1 Predict.** Five mistakes in a drafter:
# **a** the target's hidden state is one position too early;
# **b** every step gets the target's hidden state instead of the one that was returned;
# **c** every step gets the embedding of the round's first token;
# **d** the first hidden state is all zeros;
# **e** a step gets the hidden state that was returned two steps ago.
# Which of them change draft 1? Which change only later ones? Then try them with `chain`.

# %%
change_draft_1 = ""  # letters, such as "abc"
change_only_later = ""
exercise.check_1(change_draft_1, change_only_later)

# %% [markdown]
# **4.2 Change the code.** Let the position advance with each step (`chain(right, ahead=…)`), and measure the acceptance at
# each place. Do it for one position a step, and for 20.

# %%
one_a_step, twenty_a_step = None, None  # four shares each
exercise.check_2(shares, one_a_step, twenty_a_step)

# %% [markdown]
# **4.3 Explain.** Take one text and one hidden state. Sample two different next tokens from it. Which of the drafter's inputs
# differ between the two, which are the same? Then explain the bars "no embedding" and "no hidden state" with it.

# %%
differ, the_same = [], []  # of "embedding", "hidden state", "cache"
exercise.check_3(differ, the_same)

# %% [markdown]
# The answers are in [answers/04_drafter.py](answers/04_drafter.py).
#
# **Next:** 05, the drafter's head, which looks at a quarter of the vocabulary. The file to read is
# [drafter/model.py](../drafter/model.py).
