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
# # 02 · One token through Gemma 4
#
# *What happens between a token id and the distribution of the next token?*
#
# **40 minutes. Before this:** 01, one round. **It explains** [functional.py](../gemma4/functional.py),
# [layers.py](../gemma4/layers.py) and [model.py](../gemma4/model.py). **Afterwards you can**
#
# - write Gemma 4's forward pass in NumPy, and say what each line is for;
# - say what differs from the transformer you know: two kinds of attention, norms before *and* after each part, no division of
#   the scores, an extra input for every layer;
# - find the first wrong number in somebody else's forward pass.
#
# We compute everything by hand, in NumPy, and compare each step with the model's own. The model shows its intermediate values
# through a [tap](glossary.md): a function that is called with the name and the value of each step.

# %%
import json

import jax
import jax.numpy as jnp
import numpy as np

import decoding
from decoding.load import SHIPPED
from exercises import one_token as exercise
from figures import one_token as figures
from figures import style

style.use()
target, _, tokenizer = decoding.load_pair()
config = target.config

# %%
chapter = json.loads((SHIPPED / "held_out.json").read_text(encoding="utf-8"))[0]  # not among the training texts
ids = np.array([config.bos_token_id, *tokenizer.encode(chapter, add_special_tokens=False).ids])[:128]
words = [tokenizer.decode([i]) for i in ids]


@jax.jit
def run(target, tokens):
    """All named values of one forward pass."""
    seen = {}
    hidden, _ = target(tokens, tap=lambda name, value: seen.setdefault(name, value))
    return seen | {"logits": target.logits(hidden)}


seen = {name: np.asarray(value[0]) for name, value in run(target, jnp.array([ids])).items()}
print(len(ids), "tokens, the last ones", words[-6:], "·", len(seen), "named values")


# %% [markdown]
# ## The whole way in one picture
#
# Each token has one vector, here of 256 numbers, that goes through all layers: the [residual stream](glossary.md). A layer
# reads it, computes three updates, and adds them. Then it multiplies the stream by one learned number.
#
# **Predict:** does the stream grow from layer to layer?


# %%
def rms(x):
    return np.sqrt(np.mean(np.square(x[-1])))  # of the last token


stream, added = [seen["embedding"]], []
for i, layer in enumerate(target.layers):
    steps = [stream[-1], *(seen[f"layers.{i}.{name}"] for name in ("after_attention", "after_mlp", "output"))]
    stream.append(steps[-1])
    steps[-1] = steps[-1] / layer.layer_scalar[...][0]
    added.append([rms(after - before) for before, after in zip(steps, steps[1:], strict=False)])
print("layer scalars:", *[f"{layer.layer_scalar[...][0]:.2f}" for layer in target.layers])
figures.residual_stream(
    np.array([rms(x) for x in stream]), np.array(added), [kind[0] == "s" for kind in config.layer_types]
)

# %% [markdown]
# *The picture: for each layer three bars, the size of what attention (plain), the MLP (striped) and the per-layer input
# (solid, green) add for the last token; the line is the size of the stream between the layers.*
#
# It does not keep growing, although every layer adds three updates of size 1: the layer scalar, below 1 in the middle layers,
# shrinks the stream again. Now we compute each of these updates.

# %% [markdown]
# ## Embedding
#
# The first vector is a row of a table, times the square root of the width. Table rows are small, because the same table is
# the output head at the end; the factor brings them to the size of everything else.


# %%
def weights_of(module):
    return np.asarray(module.weight[...], np.float64)


def compare(name, mine, theirs):
    difference = np.abs(mine - theirs).max()
    verdict = "equal" if difference < 1e-4 * np.abs(theirs).max() else "DIFFERENT"
    print(f"{name:20} {verdict}, largest difference {difference:.1e}, largest value {np.abs(theirs).max():.2f}")


x = weights_of(target.embed_tokens)[ids] * np.sqrt(config.hidden_size)
compare("embedding", x, seen["embedding"])

# %% [markdown]
# ## RMSNorm
#
# [RMSNorm](glossary.md) divides a vector by its root mean square and multiplies it by a learned weight. Gemma 4 has four or
# five of them in a layer: one *before* each part, so that the part sees numbers of one size, and one *after* it, so that what
# is added has a learned size, too.


# %%
def rms_norm(x, weight=1.0):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps) * weight


first = target.layers[0]
normed = rms_norm(x, weights_of(first.input_layernorm))
compare("input_layernorm", normed, seen["layers.0.input_layernorm"])

# %% [markdown]
# ## RoPE: where a token stands
#
# Attention compares a query with keys by dot products, which know nothing of positions. [RoPE](glossary.md) puts them in: it
# takes the numbers of a vector in pairs (*i* and *i* + *h*/2) and turns each pair by position × frequency. The dot product of
# a turned query and a turned key then depends on the *distance* of their positions alone.
#
# Early pairs turn fast, late ones slowly. In full layers only a quarter of the pairs turn at all: Gemma calls it
# [proportional RoPE](glossary.md). What stands still compares content, wherever it is.
#
# **Predict:** after 100 positions, which pairs of a sliding layer look as if they had hardly moved?


# %%
def frequencies(head_dim, theta, share):
    each = theta ** (-np.arange(head_dim // 2) / (head_dim // 2))
    return np.where(np.arange(head_dim // 2) < share * head_dim // 2, each, 0)


def rope(x, head_dim, theta, share):
    """x: [tokens, heads, head_dim]"""
    angles = np.arange(len(x))[:, None, None] * frequencies(head_dim, theta, share)
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# %%
SLIDING, FULL = config.layer_types[0], config.layer_types[-1]
print("head dim, theta, share that turns:", config.rope(SLIDING), "sliding,", config.rope(FULL), "full")
figures.rope_hands({kind: frequencies(*config.rope(kind)) for kind in (SLIDING, FULL)}, positions=(0, 1, 10, 100))

# %% [markdown]
# *The picture: clocks, one for each pair (column) and position (row). At position 0 all hands point right. In sliding layers
# (left) pair 0 has turned by a radian after one position, and the last pair hardly after 100. In full layers (right) grey
# clocks with a dotted hand stand still at every position.*

# %% [markdown]
# ## Query, key, value
#
# Three linear maps of the normed vector give query, key and value. Queries have four heads, keys and values only one, which
# all four read: [grouped-query attention](glossary.md). That makes the KV cache four times smaller.
#
# Queries and keys are normed again, per head, and turned. The value is normed, too, but without a weight, and *not* turned.
# (In the 12B, 26B-A4B and 31B models, full layers have no map for the value. They take the key's, before its norm and
# RoPE: [k_eq_v](glossary.md).)


# %%
def heads(x, head_dim):
    return x.reshape(len(x), -1, head_dim)


def query_of(attention, normed, kind):
    raw = heads(normed @ weights_of(attention.q_proj), attention.head_dim)
    return rope(rms_norm(raw, weights_of(attention.q_norm)), *config.rope(kind))


def key_value_of(attention, normed, kind):
    key, value = (heads(normed @ weights_of(part), attention.head_dim) for part in (attention.k_proj, attention.v_proj))
    return rope(rms_norm(key, weights_of(attention.k_norm)), *config.rope(kind)), rms_norm(value)


query, (key, value) = query_of(first.self_attn, normed, SLIDING), key_value_of(first.self_attn, normed, SLIDING)

# %%
for name, mine in {"query": query, "key": key, "value": value}.items():
    print(mine.shape, end=" ")
    compare(name, mine, seen[f"layers.0.{name}"])

# %% [markdown]
# ## Attention
#
# Each query is multiplied with the keys that it sees. A softmax over these scores gives weights, and the weighted sum of the
# values is the result. Two things may be new to you:
#
# - In a sliding layer a query sees at most *window* keys, the newest ones, itself included. Here the window is 64.
# - The scores are not divided by the square root of the head dimension. Queries and keys are normed, so their size is
#   learned.
#
# **Predict:** how many keys does the query at position 127 see in a sliding layer, and how many in a full one?


# %%
def visible(tokens, window):
    back = np.arange(tokens)[:, None] - np.arange(tokens)  # how far behind the query the key is
    return (back >= 0) & (back < window)


def attention_weights(query, key, kind):
    scores = np.einsum("tnh,sh->nts", query, key[:, 0])
    mask = visible(len(query), config.sliding_window if kind == SLIDING else len(query))
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


attended = np.einsum("nts,sh->tnh", attention_weights(query, key, SLIDING), value[:, 0])
compare("attention", attended, seen["layers.0.attention"])

# %%
print("keys in sight:", visible(128, 64)[-1].sum(), "and", visible(128, 128)[-1].sum())
maps = {}
for layer, kind in ((0, SLIDING), (3, FULL)):
    weights = attention_weights(seen[f"layers.{layer}.query"], seen[f"layers.{layer}.key"], kind)
    maps[f"layer {layer} ({kind.split('_')[0]}), head 3"] = weights[3]
    far = np.where(visible(len(ids), config.sliding_window), 0, weights[3])
    print(f"layer {layer}: share of the weight on keys outside the window: {far.sum() / (len(ids) - 64):.2f}")
at, key_at = np.unravel_index(far.argmax(), far.shape)
print(f"e.g. {words[at]!r} at {at} looks at {words[key_at]!r} at {key_at}, with weight {far[at, key_at]:.2f}")
figures.attention_maps(maps, config.sliding_window)

# %% [markdown]
# *The picture: attention weights, dark for large; one row for each query, one column for each key. Above the diagonal is the
# future, which nobody sees. Below the dashed line is what a window of 64 hides: it is empty in the sliding layer (left), and
# used in the full one (right).*
#
# So only full layers carry something over more than a window. That is why the last layer of every Gemma 4 is a full one.

# %% [markdown]
# ## MLP and per-layer input
#
# The [gated MLP](glossary.md) multiplies two linear maps of its input, one of them through GELU, and maps the product back.
#
# The third update is peculiar to the small models, E2B and E4B. A second table has a row for each token *and* layer: the
# [per-layer embeddings](glossary.md). Such a table costs memory, but hardly any arithmetic. Each layer gets its part of the
# row, mixed with a projection of the embedding, and opens or closes it by a gate.


# %%
def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(part, x):
    return (gelu(x @ weights_of(part.gate_proj)) * (x @ weights_of(part.up_proj))) @ weights_of(part.down_proj)


ple = target.per_layer_embeddings
rows = weights_of(ple.embed_tokens_per_layer)[ids] * np.sqrt(ple.width)
projected = heads(x @ weights_of(ple.per_layer_model_projection) / np.sqrt(config.hidden_size), ple.width)
per_layer_inputs = (heads(rows, ple.width) + rms_norm(projected, weights_of(ple.per_layer_projection_norm))) / np.sqrt(
    2
)
compare("per_layer_inputs", per_layer_inputs, seen["per_layer_inputs"])

# %% [markdown]
# ## A layer, and eight of them
#
# Now all parts together. `kv` is a dictionary with the newest keys and values of each kind of layer. Layers 4 to 7 compute
# none, and so they read what layers 2 and 3 left there: [KV sharing](glossary.md), the subject of 03.
#
# **Predict:** an error of one part in a million in layer 0. Will it be larger or smaller after eight layers?


# %%
def attention_update(layer, kind, x, kv):
    attention, normed = layer.self_attn, rms_norm(x, weights_of(layer.input_layernorm))
    if attention.owns_kv:
        kv[kind] = key_value_of(attention, normed, kind)
    key, value = kv[kind]
    weights = attention_weights(query_of(attention, normed, kind), key, kind)
    attended = np.einsum("nts,sh->tnh", weights, value[:, 0]).reshape(len(x), -1)
    return rms_norm(attended @ weights_of(attention.o_proj), weights_of(layer.post_attention_layernorm))


# %%
def layer_by_hand(layer, kind, x, per_layer_input, kv):
    x = x + attention_update(layer, kind, x, kv)
    update = mlp(layer.mlp, rms_norm(x, weights_of(layer.pre_feedforward_layernorm)))
    x = x + rms_norm(update, weights_of(layer.post_feedforward_layernorm))
    gated = gelu(x @ weights_of(layer.per_layer_input_gate)) * per_layer_input
    x = x + rms_norm(gated @ weights_of(layer.per_layer_projection), weights_of(layer.post_per_layer_input_norm))
    return x * np.asarray(layer.layer_scalar[...], np.float64)


# %%
state, kv = x, {}
for i, layer in enumerate(target.layers):
    state = layer_by_hand(layer, config.layer_types[i], state, per_layer_inputs[:, i], kv)
    compare(f"layers.{i}.output", state, seen[f"layers.{i}.output"])

# %% [markdown]
# The difference stays at rounding: our sums are float64, the model's float32. The norms divide an error together with the
# stream, so it does not grow.
#
# ## The next token
#
# One more norm gives the [hidden state](glossary.md), which the drafter reads, too. Its dot products with the rows of the
# embedding table are the [logits](glossary.md). Last, the [soft cap](glossary.md) bounds them: 30 · tanh(logit / 30).
#
# **Predict:** can the soft cap change which token is the most likely one?

# %%
hidden = rms_norm(state, weights_of(target.norm))
raw = hidden @ weights_of(target.embed_tokens).T
logits = config.final_logit_softcapping * np.tanh(raw / config.final_logit_softcapping)
compare("hidden", hidden, seen["hidden"])
compare("logits", logits, seen["logits"])
print(f"largest logit of the last token: {raw[-1].max():.2f}, after the soft cap {logits[-1].max():.2f}")
probs = np.exp(logits[-1] - logits[-1].max())
probs /= probs.sum()
best = np.argsort(-probs)[:8]
print("after", repr("".join(words[-8:])))
figures.next_tokens([tokenizer.decode([i]) for i in best], probs[best])

# %% [markdown]
# *The picture: the eight most likely next tokens and their probabilities.*
#
# The cap keeps the order, because tanh grows everywhere. It makes large logits smaller, and so the distribution a little
# flatter.

# %% [markdown]
# ## What you saw
#
# - One vector for each token goes through all layers; each layer adds three normed updates and scales the sum.
# - RoPE turns pairs of a query or key. The score knows the distance of two tokens, not where they are.
# - Sliding layers see a window, full layers see everything; four query heads read one key and value.
# - The embedding table is used twice: for the first step, and for the last.
# - A forward pass is short. All of it is on this page, and every number agrees with the model's.

# %%
assert np.abs(logits - seen["logits"]).max() < 1e-4 * np.abs(seen["logits"]).max()

# %% [markdown]
# ## Exercises
#
# **2.1 Predict.** A query of 64 numbers comes from RMSNorm with all weights 1. A key at the same position is equal to it.
# Which score does Gemma 4 give them, before the softmax?

# %%
score = None  # a number
exercise.check_1(score)

# %% [markdown]
# **2.2 Change the code.** Some engines count the window without the query: *w* earlier keys, *and* the query's own. Write
# that as `visible_more`, in the form of `visible` above. By how many keys do the two differ for the queries at positions 0,
# *w* − 1, *w* and 2*w*?


# %%
def visible_more(tokens, window):
    return None


differences = []  # four numbers
exercise.check_2(visible_more, differences)

# %% [markdown]
# **2.3 Explain.** Why is the value not turned? Write attention of one head with positions given, and with values turned if
# asked for. The check moves all positions by 10 and tells you what changes. Explain it: the scores depend on distances; on
# what would the sum of turned values depend?


# %%
def attend(query, key, value, positions, turns_values):
    """query, key, value: [tokens, 64], not yet turned; theta is 10,000, each query sees itself and what is before."""
    return None


exercise.check_3(attend)

# %% [markdown]
# The answers are in [answers/02_one_token.py](answers/02_one_token.py).
#
# **Next:** 03, the KV cache: the keys and values of this page, kept between passes. Then read
# [model.py](../gemma4/model.py): it is this page without comparisons, and with a cache.
