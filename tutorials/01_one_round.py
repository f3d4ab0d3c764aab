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
# A large model (the **target**) writes one token per pass, and each pass reads all of its weights. A small **drafter** guesses
# a few tokens ahead; the target checks all guesses in *one* pass, which costs less than a pass for each. What it agrees with
# is kept. The text comes from the target's law alone, so a bad drafter costs time and never changes the text.
#
# This page walks through one round with the pair that ships with the package, stage by stage, and then asserts that the
# compiled round does the very same:
#
#     prefill → share → draft → verify → accept → emit → rollback
#
# What happens is done by the package's own functions. Two loops, those of draft and accept, are written out as well, and
# compared with them.

# %%
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
GAMMA = 4
SAMPLING = decoding.Sampling(temperature=1.0)  # at temperature 0 every law is one-hot; at 1 there is something to see


def word(token):
    return repr(tokenizer.decode([int(token)]))[1:-1]


print(f"target:  {config.num_hidden_layers} layers of width {config.hidden_size}, {config.vocab_size} tokens")
print(f"drafter: {draft_model.config.text.num_hidden_layers} layers of width {draft_model.config.text.hidden_size}")

# %% [markdown]
# ## Stage 0: prefill
#
# The prompt is read into the KV cache, and the target draws one token of its own. It is emitted, but it is not in the cache
# yet. That is the state in which every round begins:
#
#     cache.length == prompt length + emitted − 1

# %%
text = "And Moses said unto the people, Fear not: for"
prompt = [config.bos_token_id, *tokenizer.encode(text, add_special_tokens=False).ids]
state = decoding.prefill(
    target, [prompt], max_new_tokens=32, draft_length=GAMMA, sampling=SAMPLING, key=jax.random.key(33)
)
length, first = int(state.cache.length[0]), state.token
print(f"{len(prompt)} prompt tokens; cache.length = {length}; the first token is {word(first[0])!r}")
assert length == len(prompt) + int(state.emitted[0]) - 1

# %% [markdown]
# The hidden row that predicted that token goes along: it is the drafter's second input. It is taken *after* the target's final
# norm, so the target's head turns it into the law (the distribution over all tokens) that it was drawn from.

# %%
first_law = token_probs(target.logits(state.hidden), SAMPLING)[0]
top = np.argsort(-np.asarray(first_law))[:10]
plt.figure(figsize=(8, 2.2))
plt.bar(range(10), first_law[top], color=["tab:orange" if token == first[0] else "tab:gray" for token in top])
plt.xticks(range(10), [word(token) for token in top], rotation=30)
plt.ylabel("probability")
plt.title("the target's law after the prompt; orange: the token it drew")
plt.show()

# %% [markdown]
# ## What the drafter sees
#
# The drafter has no keys and values. Its layers hold queries only and read two layers of the *target's* cache: the last sliding
# and the last full one that own any. The token at position p lies in slot p % capacity; a sliding layer's ring has few slots,
# however long the text becomes.

# %%
shared = drafter.share_cache(state.cache, config)
figure, axes = plt.subplots(2, 1, figsize=(9, 2.6))
for axis, (kind, kv) in zip(axes, sorted(shared.donors.items()), strict=True):
    positions = np.asarray(slot_positions(shared.length - 1, kv.capacity))[0]
    axis.imshow(np.where(positions >= 0, positions, np.nan)[None], aspect="auto")
    axis.set_yticks([])
    axis.set_title(
        f"{kind}: layer {config.donors[kind]}, {kv.capacity} slots; colour: position held, white: nothing yet",
        fontsize=9,
    )
    print(f"{kind:18s} keys and values {kv.key.shape}  [batch, KV heads, slots, head size]")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Stage 1: draft
#
# Each step gets the target's embedding of the newest token and a hidden row: first the target's, then the drafter's own from
# the step before. All steps stand at one constant position and see the same rows: nothing is written while drafting.
#
# Here are the steps one at a time. Each draws from the drafter's own law with one uniform number.

# %%
key, draft_key, accept_key = jax.random.split(state.key, 3)
uniforms = jax.random.uniform(draft_key, (GAMMA, 1))

token, hidden, by_hand, draft_laws = first, state.hidden, [], []
for step in range(GAMMA):
    logits, hidden = drafter.forward(draft_model, target.embed_tokens(token), hidden, shared)
    draft_laws.append(token_probs(logits, SAMPLING)[0])
    token = sample_from(draft_laws[-1][None], uniforms[step])
    by_hand.append(int(token[0]))
    scored = int(np.isfinite(logits[0]).sum())
    print(
        f"step {step + 1}: drafts {word(token[0])!r:14} with probability {draft_laws[-1][token[0]]:.3f}; "
        f"the clustered head scored {scored} of {config.vocab_size} tokens"
    )

# %% [markdown]
# `decoding.stages.draft` is that loop.

# %%
block = decoding.draft(
    target, draft_model, first, state.hidden, shared, draft_key, draft_length=GAMMA, sampling=SAMPLING
)
print("drafted:", [word(token) for token in block.tokens[0]])
assert block.tokens[0].tolist() == by_hand

# %% [markdown]
# ## Stage 2: verify
#
# One pass of the target over that token and all drafts. Row *i* is the target's law of the token after the *i*-th of them, so
# γ drafts give γ + 1 laws: one to judge each draft, and one for the token after the last.

# %%
verified = decoding.verify(target, state.cache, first, block.tokens)
target_laws = token_probs(verified.logits, SAMPLING)
print(f"cache.length: {length} before, {int(verified.cache.length[0])} after, drafts included")

figure, axes = plt.subplots(1, GAMMA, figsize=(11, 2.6), sharey=True)
for i, axis in enumerate(axes):
    both = np.stack([target_laws[0, i], block.probs[0, i]])
    top = np.argsort(-both.max(axis=0))[:5]
    for offset, name, row in ((-0.2, "target", both[0]), (0.2, "drafter", both[1])):
        axis.bar(np.arange(5) + offset, row[top], width=0.4, label=name)
    axis.set_xticks(range(5), [word(token) for token in top], rotation=40, fontsize=8)
    axis.set_title(f"draft {i + 1}: {word(block.tokens[0, i])!r}", fontsize=9)
axes[0].legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Stage 3: accept
#
# A draft x with target probability p(x) and draft probability q(x) is accepted with probability min(1, p(x) / q(x)): one
# uniform number u, accepted if u · q(x) < p(x). The first rejection ends the run. (Leviathan et al. 2023, algorithm 1.)

# %%
accept_uniforms = jax.random.uniform(accept_key, (1, GAMMA + 1))
num_accepted = 0
for i, token in enumerate(by_hand):
    p, q, u = float(target_laws[0, i, token]), float(block.probs[0, i, token]), float(accept_uniforms[0, i])
    accepted = u * q < p
    print(f"{word(token)!r:14} p = {p:.3f}  q = {q:.3f}  u = {u:.3f}  {'accepted' if accepted else 'rejected'}")
    if not accepted:
        break
    num_accepted += 1
print(f"{num_accepted} of {GAMMA} accepted")

# %% [markdown]
# The next token is the target's own. After a rejection it is drawn from what the drafts left over, max(p − q, 0) up to its
# sum: together with the accepted ones this makes the law of the text exactly p. After a full run it is drawn from the last
# law itself.

# %%
at = min(num_accepted, GAMMA - 1)
left_over = residual(target_laws[0, at], block.probs[0, at])
top = np.argsort(-np.asarray(target_laws[0, at] + block.probs[0, at]))[:8]
plt.figure(figsize=(9, 2.4))
for offset, name, row in (
    (-0.27, "p: target", target_laws[0, at]),
    (0, "q: drafter", block.probs[0, at]),
    (0.27, "max(p − q, 0)", left_over),
):
    plt.bar(np.arange(8) + offset, row[top], width=0.27, label=name)
plt.xticks(range(8), [word(token) for token in top])
plt.title(f"at draft {at + 1}")
plt.legend()
plt.show()

result = decoding.accept(target_laws, block.tokens, block.probs, accept_key)
print(f"accepted {int(result.num_accepted[0])}; the target's own token: {word(result.next_token[0])!r}")
assert int(result.num_accepted[0]) == num_accepted
assert decide(target_laws, block.tokens, block.probs, accept_uniforms).next_token == result.next_token

# %% [markdown]
# `accept_block` judges drafts together instead of one by one (Sun et al. 2024): where one has probability to spare, p > q, that
# makes up for another that lacks it. The law of the text is the same, and on average more drafts are kept: here over 200 drafts
# from the same place.


# %%
@jax.jit
def accepted_by_either_rule(key):
    draft_key, accept_key = jax.random.split(key)
    other = decoding.draft(
        target, draft_model, first, state.hidden, shared, draft_key, draft_length=GAMMA, sampling=SAMPLING
    )
    its_laws = token_probs(decoding.verify(target, state.cache, first, other.tokens).logits, SAMPLING)
    rules = decoding.accept, decoding.accept_block
    return [rule(its_laws, other.tokens, other.probs, accept_key).num_accepted[0] for rule in rules]


one_by_one, by_block = np.mean([accepted_by_either_rule(key) for key in jax.random.split(key, 200)], axis=0)
print(f"of {GAMMA} drafts {one_by_one:.2f} are kept one by one, {by_block:.2f} by block")
assert by_block > one_by_one

# %% [markdown]
# ## Stage 4: emit
#
# The accepted drafts and the target's token are the text, unless it ends before: at the first end-of-text token among them, or
# where the budget of new tokens does. Neither happens here.

# %%
tokens = with_next_token(block.tokens, result.num_accepted, result.next_token)
room = state.budget - state.emitted
num_emitted, done = count_emitted(tokens, result.num_accepted + 1, room, state.done, eos_ids=())
expected = tokens[0, : int(num_emitted[0])].tolist()
print("emitted:", [word(token) for token in expected], "— the row is done" if done[0] else "— the row goes on")
assert expected == [*by_hand[:num_accepted], int(result.next_token[0])]

# %% [markdown]
# ## Stage 5: rollback
#
# The verify wrote all drafts into the cache; the rejected ones must go. Nothing is copied and nothing is cleared: the length
# goes back. No mask shows a slot beyond it, which the next cell proves by filling all those slots with NaN.

# %%
cache = decoding.rollback(verified.cache, state.cache.length, num_emitted)
print(f"cache.length: {length} → {int(verified.cache.length[0])} (verify) → {int(cache.length[0])} (rollback)")


def poisoned(cache):
    """The cache with NaN in every slot that holds no committed token."""

    def poison(kv):
        held = slot_positions(cache.length - 1, kv.capacity) >= 0
        return gemma4.LayerKV(*(jnp.where(held[:, None, :, None], x, jnp.nan) for x in kv))

    return cache._replace(layers=tuple(kv and poison(kv) for kv in cache.layers))


next_hidden = verified.hidden[jnp.arange(1), result.num_accepted]
next_draft = [
    decoding.draft(
        target,
        draft_model,
        result.next_token,
        next_hidden,
        drafter.share_cache(some, config),
        key,
        draft_length=GAMMA,
        sampling=SAMPLING,
    )
    for some in (cache, poisoned(cache))
]
clean, dirty = (
    decoding.verify(target, some, result.next_token, next_draft[0].tokens) for some in (cache, poisoned(cache))
)
assert (next_draft[0].tokens == next_draft[1].tokens).all()
assert (clean.logits == dirty.logits).all()
print("the next round drafts and verifies the same, bit for bit, with NaN in every uncommitted slot")

# %% [markdown]
# ## The round as one compiled call
#
# `decoding.speculative_step` is these stages in one `jax.jit`, with the cache donated. From the same state it must do what
# was done by hand.

# %%
after = decoding.speculative_step(
    target, draft_model, state, decoding.Options(GAMMA, sampling=SAMPLING, draft_sampling=SAMPLING)
)
emitted = after.last.tokens[0, : int(after.last.num_emitted[0])].tolist()
print("by hand: ", [word(token) for token in expected])
print("compiled:", [word(token) for token in emitted])
assert emitted == expected
assert int(after.cache.length[0]) == int(cache.length[0]) == len(prompt) + int(after.emitted[0]) - 1

# %% [markdown]
# ## Many rounds
#
# `decoding.generation` runs rounds until the text is done. At temperature 0 the text is the target's own greedy text, token for
# token; only the number of passes differs.

# %%
fast = decoding.generate(target, draft_model, prompt, max_new_tokens=48, draft_length=GAMMA)
slow = decoding.generate_autoregressive(target, prompt, max_new_tokens=48)
print(tokenizer.decode(prompt[1:]) + tokenizer.decode(fast.tokens[0].tolist()))
print(
    f"{fast.stats.rounds} verify passes instead of {slow.stats.rounds} steps: {fast.stats.tokens_per_round:.2f} tokens a pass"
)
print("accepted at draft 1, 2, …:", [f"{share:.0%}" for share in fast.stats.acceptance_per_position])
assert (fast.tokens[0] == slow.tokens[0]).all()
