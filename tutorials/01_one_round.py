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
# # One round of speculative decoding, by hand
#
# A large model (the **target**) writes one token per forward pass, and each pass reads all of its weights. A small **drafter**
# guesses a few tokens ahead. The target then checks all guesses in *one* pass, which costs less than one pass for each.
# Guesses that pass the check stay. The text follows the target's distribution exactly, so a bad drafter costs time but never
# changes what the text is drawn from.
#
# This notebook goes through one round, stage by stage, with the pair that ships with the package:
#
#     prefill → share → draft → verify → accept → emit → rollback
#
# The last cells check that the compiled round does exactly the same. The stages are the package's own functions; the loops of
# *draft* and *accept* are also written out here, and compared with them.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import decoding
import drafter
import gemma4
from decoding.sampling import sample_from, token_probs
from decoding.stages.accept import decide, residual
from decoding.stages.emit import count_emitted, with_next_token
from gemma4.cache import slot_positions

target, draft_model, tokenizer = decoding.load_pair()
config = target.config
GAMMA = 4  # drafts a round
SAMPLING = decoding.Sampling(temperature=1.0)  # at 0 each distribution is one-hot: little to see
OPTIONS = decoding.Options(GAMMA, SAMPLING)


def word(token):
    """The text of a token, with its leading space."""
    return repr(tokenizer.decode([int(token)]))[1:-1]


print(f"target:  {config.num_hidden_layers} layers of width {config.hidden_size}, vocabulary of {config.vocab_size}")
print(f"drafter: {draft_model.config.text.num_hidden_layers} layers of width {draft_model.config.text.hidden_size}")

# %% [markdown]
# ## Stage 0: prefill
#
# The target reads the prompt into the KV cache and draws one token. That token is emitted, but it is not in the cache yet.
# Every round starts in this state:
#
#     cache.length == prompt length + emitted − 1

# %%
text = "And Moses said unto the people, Fear not: for"
prompt = [config.bos_token_id, *tokenizer.encode(text, add_special_tokens=False).ids]
state = decoding.prefill(target, [prompt], OPTIONS, max_new_tokens=32, key=jax.random.key(33))
length, first = int(state.cache.length[0]), state.token
print(f"{len(prompt)} prompt tokens; cache.length = {length}; the first token is {word(first[0])!r}")
assert length == len(prompt) + int(state.emitted[0]) - 1

# %% [markdown]
# The state also holds the **hidden state** that predicted this token: the drafter will need it. It is taken *after* the
# target's final norm, so the target's head maps it to the distribution that the token was drawn from.

# %%
first_probs = token_probs(target.logits(state.hidden), SAMPLING)[0]
top = np.argsort(-np.asarray(first_probs))[:10]
plt.figure(figsize=(8, 2.4))
plt.bar(range(10), first_probs[top], color=["tab:orange" if token == first[0] else "tab:gray" for token in top])
plt.xticks(range(10), [word(token) for token in top], rotation=30)
plt.ylabel("probability")
plt.title("the target's distribution after the prompt; orange: the token it drew")
plt.show()

# %% [markdown]
# ## Share: what the drafter reads
#
# The drafter has no keys and values of its own. Its layers compute queries only, and read the K/V of two layers of the
# *target*, its donors: the last sliding-window layer and the last full-attention layer that own K/V.
#
# In both, the token at position p is in slot p % capacity. A full layer has a slot for every position. A sliding layer is a
# **ring**: it has few slots, however long the text gets, and new tokens overwrite those that no query can see any more. The
# last picture shows the ring for a longer text.

# %%
shared = drafter.share_cache(state.cache, config)
ring = shared.donors["sliding_attention"].capacity
last = int(shared.length[0]) - 1  # the newest position in the cache
later = 2 * ring + ring // 3
pictures = [
    *((f"{kind}: layer {config.donors[kind]}", last, kv.capacity) for kind, kv in sorted(shared.donors.items())),
    (f"the same ring after {later + 1} tokens", later, ring),
]
figure, axes = plt.subplots(3, 1, figsize=(9, 4))
for axis, (title, newest, capacity) in zip(axes, pictures, strict=True):
    positions = np.asarray(slot_positions(jnp.array([newest]), capacity))
    held = axis.imshow(np.where(positions >= 0, positions, np.nan), aspect="auto")
    axis.set_title(f"{title}, {capacity} slots, positions {max(0, positions.min())} to {newest}", fontsize=9)
    axis.set_yticks([])
    figure.colorbar(held, ax=axis, label="position", pad=0.01)
axes[-1].set_xlabel("slot (white: empty)")
plt.tight_layout()
plt.show()
for kind, kv in sorted(shared.donors.items()):
    print(f"{kind:18s} K and V {kv.key.shape}  [batch, KV heads, slots, head dim]")

# %% [markdown]
# ## Stage 1: draft
#
# One draft step reads the target's embedding of the newest token, and a hidden state: in the first step the target's, later
# the one that the drafter's own previous step returned. All steps of a round use one constant position and see the same K/V,
# because nothing is written while drafting.
#
# Here are the steps one at a time. Each draws a token from the drafter's own distribution with one uniform random number.

# %%
key, draft_key, accept_key = jax.random.split(state.key, 3)
uniforms = jax.random.uniform(draft_key, (GAMMA, 1))

token, hidden, by_hand = first, state.hidden, []
for step in range(GAMMA):
    logits, hidden = drafter.forward(draft_model, target.embed_tokens(token), hidden, shared)
    probs = token_probs(logits, SAMPLING)
    token = sample_from(probs, uniforms[step])
    by_hand.append(int(token[0]))
    scored = int(np.isfinite(logits[0]).sum())
    print(
        f"step {step + 1}: drafts {word(token[0])!r:14} with probability {probs[0, token[0]]:.3f}; "
        f"the clustered head scored {scored} of {config.vocab_size} tokens"
    )

# %% [markdown]
# `decoding.draft` is that loop. It also returns the distributions that the drafts were drawn from.

# %%
drafted = decoding.draft(
    target, draft_model, first, state.hidden, shared, draft_key, draft_length=GAMMA, sampling=SAMPLING
)
print("drafted:", [word(token) for token in drafted.tokens[0]])
assert drafted.tokens[0].tolist() == by_hand

# %% [markdown]
# ## Stage 2: verify
#
# The target runs once over the newest token and all drafts. Each position gives the target's distribution of the token that
# follows it. So γ drafts give γ + 1 distributions: one for each draft, and one for the token after the last draft. The picture
# shows the first γ beside the drafter's: each draft, and the four likeliest other tokens.

# %%
verified = decoding.verify(target, state.cache, first, drafted.tokens)
target_probs = token_probs(verified.logits, SAMPLING)
print(f"cache.length: {length} before, {int(verified.cache.length[0])} after, drafts included")
print(f"{target_probs.shape[1]} distributions over {target_probs.shape[2]} tokens for {GAMMA} drafts")

figure, axes = plt.subplots(1, GAMMA, figsize=(11, 2.8), sharey=True)
for i, axis in enumerate(axes):
    both = np.stack([target_probs[0, i], drafted.probs[0, i]])
    token = int(drafted.tokens[0, i])
    top = [token, *(other for other in np.argsort(-both.max(axis=0))[:5] if other != token)][:5]
    for offset, name, probs in ((-0.2, "target", both[0]), (0.2, "drafter", both[1])):
        axis.bar(np.arange(5) + offset, probs[top], width=0.4, label=name)
    axis.set_xticks(range(5), [word(token) for token in top], rotation=40, fontsize=8)
    axis.set_title(f"draft {i + 1}: {word(token)!r}", fontsize=9)
axes[0].set_ylabel("probability")
axes[0].legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Stage 3: accept
#
# Let p(x) be the target's probability of a draft x, and q(x) the drafter's. The draft is accepted with probability
# min(1, p(x) / q(x)): draw a uniform number u, and accept if u · q(x) < p(x). The first rejection ends the run. This is
# speculative sampling (Leviathan et al. 2023, algorithm 1).

# %%
accept_uniforms = jax.random.uniform(accept_key, (1, GAMMA + 1))
num_accepted = 0
for i, token in enumerate(by_hand):
    p, q, u = float(target_probs[0, i, token]), float(drafted.probs[0, i, token]), float(accept_uniforms[0, i])
    accepted = u * q < p
    print(f"{word(token)!r:14} p = {p:.3f}  q = {q:.3f}  u = {u:.3f}  {'accepted' if accepted else 'rejected'}")
    if not accepted:
        break
    num_accepted += 1
print(f"{num_accepted} of {GAMMA} accepted")

# %% [markdown]
# The target adds the next token itself. After a rejection it is drawn from the **residual distribution**: max(p − q, 0),
# divided by its sum. Accepted drafts and this correction together follow p exactly. If all drafts are accepted, the next token
# is drawn from the last of the γ + 1 distributions: the **bonus token**.

# %%
at = min(num_accepted, GAMMA - 1)
not_normalised = residual(target_probs[0, at], drafted.probs[0, at])
top = np.argsort(-np.asarray(target_probs[0, at] + drafted.probs[0, at]))[:8]
plt.figure(figsize=(9, 2.6))
for offset, name, probs in (
    (-0.27, "p: target", target_probs[0, at]),
    (0, "q: drafter", drafted.probs[0, at]),
    (0.27, "max(p − q, 0)", not_normalised),
):
    plt.bar(np.arange(8) + offset, probs[top], width=0.27, label=name)
plt.xticks(range(8), [word(token) for token in top])
plt.ylabel("probability")
plt.title(f"draft {at + 1}: {word(by_hand[at])!r}")
plt.legend()
plt.show()

result = decoding.accept(target_probs, drafted.tokens, drafted.probs, accept_key)
print(f"accepted {int(result.num_accepted[0])}; the target's own token: {word(result.next_token[0])!r}")
assert int(result.num_accepted[0]) == num_accepted
assert decide(target_probs, drafted.tokens, drafted.probs, accept_uniforms).next_token == result.next_token

# %% [markdown]
# `accept_block` is another method, **block verification** (Sun et al. 2024). It decides about all drafts of a round together:
# a draft with probability to spare (p > q) makes up for another one that lacks it (p < q). The text has the same distribution,
# and on average more drafts are accepted. Here are both methods on 200 draws of γ drafts from the same state.


# %%
@jax.jit
def accepted_by_each_method(key):
    draft_key, accept_key = jax.random.split(key)
    other = decoding.draft(
        target, draft_model, first, state.hidden, shared, draft_key, draft_length=GAMMA, sampling=SAMPLING
    )
    probs = token_probs(decoding.verify(target, state.cache, first, other.tokens).logits, SAMPLING)
    methods = decoding.accept, decoding.accept_block
    return [method(probs, other.tokens, other.probs, accept_key).num_accepted[0] for method in methods]


by_token, by_block = np.mean([accepted_by_each_method(key) for key in jax.random.split(key, 200)], axis=0)
print(f"accepted of {GAMMA} drafts, on average: {by_token:.2f} token by token, {by_block:.2f} by block")
assert by_block > by_token

# %% [markdown]
# ## Stage 4: emit
#
# The accepted drafts and the target's own token become text, unless the text ends earlier: after the first end-of-text token
# among them, or when the budget of new tokens is used up. Neither happens here.

# %%
tokens = with_next_token(drafted.tokens, result.num_accepted, result.next_token)
room = state.budget - state.emitted
num_emitted, done = count_emitted(tokens, result.num_accepted + 1, room, state.done, eos_ids=())
expected = tokens[0, : int(num_emitted[0])].tolist()
print("emitted:", [word(token) for token in expected], "(the text is complete)" if done[0] else "(the text goes on)")
assert expected == [*by_hand[:num_accepted], int(result.next_token[0])]

# %% [markdown]
# ## Stage 5: rollback
#
# *Verify* wrote all drafts into the cache, and the rejected ones must go. Rollback only sets the length back. It copies
# nothing and clears nothing, because no mask shows a slot beyond the length. The cell proves it: it fills all those slots with
# NaN and gets the same next round.

# %%
cache = decoding.rollback(verified.cache, state.cache.length, num_emitted)
print(f"cache.length: {length} → {int(verified.cache.length[0])} (verify) → {int(cache.length[0])} (rollback)")


def poisoned(cache):
    """The cache with NaN in every slot that holds no committed token."""

    def poison(kv):
        held = slot_positions(cache.length - 1, kv.capacity) >= 0
        return gemma4.LayerKV(*(jnp.where(held[:, None, :, None], x, jnp.nan) for x in kv))

    return cache._replace(layers=tuple(kv and poison(kv) for kv in cache.layers))


def next_round(cache):
    """The drafts and the verification of the next round."""
    drafted = decoding.draft(
        target,
        draft_model,
        result.next_token,
        verified.hidden[jnp.arange(1), result.num_accepted],
        drafter.share_cache(cache, config),
        key,
        draft_length=GAMMA,
        sampling=SAMPLING,
    )
    return drafted, decoding.verify(target, cache, result.next_token, drafted.tokens)


(clean_drafts, clean), (nan_drafts, with_nan) = next_round(cache), next_round(poisoned(cache))
assert (clean_drafts.tokens == nan_drafts.tokens).all()
assert (clean.logits == with_nan.logits).all()
print("with NaN in every uncommitted slot, the next round has the same drafts and logits, bit for bit")

# %% [markdown]
# ## The whole round as one compiled call
#
# `decoding.speculative_step` runs these stages in one `jax.jit` call. From the same state it must do what we did by hand.
# (It takes over the buffers of `state`, so `state` cannot be used afterwards.)

# %%
after = decoding.speculative_step(target, draft_model, state, OPTIONS)
emitted = after.last.tokens[0, : int(after.last.num_emitted[0])].tolist()
print("by hand: ", [word(token) for token in expected])
print("compiled:", [word(token) for token in emitted])
assert emitted == expected
assert int(after.cache.length[0]) == int(cache.length[0]) == len(prompt) + int(after.emitted[0]) - 1

# %% [markdown]
# ## Many rounds
#
# `decoding.generate` runs rounds until the text is complete; `loop="plain"` is the loop as written in
# `decoding/generation.py`. At temperature 0 the text equals the target's own greedy text, token for token. Only the number of
# passes differs.

# %%
speculative = decoding.generate(target, draft_model, prompt, max_new_tokens=48, draft_length=GAMMA, loop="plain")
baseline = decoding.generate_autoregressive(target, prompt, max_new_tokens=48, loop="plain")
stats = speculative.stats
print(tokenizer.decode(prompt[1:]) + tokenizer.decode(speculative.tokens[0].tolist()))
print()
print(
    f"{stats.rounds} verify passes instead of {baseline.stats.rounds} steps: {stats.tokens_per_round:.2f} tokens a pass"
)
print(
    "accepted, by draft position: ",
    ", ".join(f"{i}: {share:.0%}" for i, share in enumerate(stats.acceptance_per_position, start=1)),
)
assert (speculative.tokens[0] == baseline.tokens[0]).all()

# %% [markdown]
# Fewer passes are not the same as less time, because a round also drafts, and a *verify* of γ + 1 tokens takes longer than a
# step of one. How much is left depends on the machine. This is the one cell whose output differs from run to run;
# `gemma4-mtp bench` measures more carefully, and `tutorials/reference/speed.md` shows the results.


# %% tags=["timing"]
def seconds(run):
    run()  # compile
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


with_drafter = seconds(lambda: decoding.generate(target, draft_model, prompt, max_new_tokens=120, draft_length=GAMMA))
without = seconds(lambda: decoding.generate_autoregressive(target, prompt, max_new_tokens=120))
print(f"120 tokens, prefill included: {with_drafter:.2f} s with drafts, {without:.2f} s without")
