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
# # 06 · Accept, reject, and the theorem
#
# **Why is the distribution of the text exactly the target's, whatever the drafter proposes?**
#
# *45 minutes.* Before: [01 · One round](01_one_round.ipynb), and what a probability is. No calculus.
#
# Afterwards you can
#
# - prove the theorem of speculative sampling in three lines,
# - check a rule of acceptance without drawing a single sample, and
# - say what is wrong with three rules that look right.
#
# The page explains [accept.py](../decoding/stages/accept.py) and [sampling.py](../decoding/sampling.py). Terms are in the
# [glossary](glossary.md).

# %%
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
from decoding.oracle.law_check import DRAFTERS, TARGET, Round, emitted_law, target_law, total_variation
from decoding.sampling import sample_from, token_probs
from decoding.stages.accept import decide
from exercises.accept_and_reject import check_1, check_2, check_3
from figures import accept_and_reject as figures
from figures import style

# %%
style.use()
words = ["sun", "moon", "star", "sky"]
p = np.array([0.45, 0.30, 0.15, 0.10])  # of the target
q = np.array([0.20, 0.50, 0.10, 0.20])  # of the drafter
figures.overlap(words, p, q)

# %% [markdown]
# *The picture:* two distributions over a vocabulary of four words, and what they have in common: for each word the smaller
# of the two probabilities, min(p, q). The drafter says "moon" and "sky" too often, "sun" and "star" too seldom.
#
# The drafter draws one word from q. We may keep it or throw it away and draw another one. In the end the word must have
# distribution p.
#
# ## Keep some
#
# "moon" comes with probability 0.5, and should come with 0.3. So keep it in three cases of five: with probability p/q.
# "sun" comes with 0.2 and should come with 0.45: keep it always. In one formula, a draft x is accepted with probability
#
#     min(1, p(x) / q(x))
#
# **Predict:** how often is each word drafted *and* accepted? One of the three panels above has the answer.

# %%
rng = np.random.default_rng(0)
count = 200_000
drafts = rng.choice(4, count, p=q)
accepted = rng.random(count) * q[drafts] < p[drafts]  # u < p / q
kept = np.bincount(drafts[accepted], minlength=4) / count
for word, share, common in zip(words, kept, np.minimum(p, q), strict=True):
    print(f"{word:5} drafted and accepted: {share:.2f}   min(p, q) = {common:.2f}")

# %% [markdown]
# A word is drafted with probability q and then kept with min(1, p/q). The product is min(p, q): the green panel.
#
# ## Replace the others
#
# What is missing? For each word, p − min(p, q), which is max(p − q, 0). It is 0 for the words that the drafter says too
# often. So after a refusal draw from these numbers, divided by their sum: the **residual distribution**.
#
# **Predict:** which words can come after a refusal?

# %%
rest = np.maximum(p - q, 0)
replaced = rng.choice(4, count, p=rest / rest.sum())
emitted = np.where(accepted, drafts, replaced)
print("residual:", dict(zip(words, (rest / rest.sum()).round(3).tolist(), strict=True)))
print("emitted: ", dict(zip(words, (np.bincount(emitted) / count).round(2).tolist(), strict=True)))
print("target:  ", dict(zip(words, p.tolist(), strict=True)))

# %% [markdown]
# ## The theorem, in three lines
#
# **Theorem.** The emitted word has distribution p.
#
# *Proof.* Let β = Σ min(p, q), summed over all words.
#
# 1. x is drafted and accepted with probability q(x) · min(1, p(x)/q(x)) = min(p(x), q(x)).
# 2. Some draft is refused with probability 1 − β. The residual's sum is the same number: Σ (p − min(p, q)) = 1 − β. So x
#    comes after a refusal with probability (1 − β) · (p(x) − min(p(x), q(x))) / (1 − β) = p(x) − min(p(x), q(x)).
# 3. Together: min(p(x), q(x)) + p(x) − min(p(x), q(x)) = p(x). ∎
#
# Nothing was assumed about q. A bad drafter makes β small, and p stays p.

# %%
figures.two_parts(words, p, q)

# %% [markdown]
# *The picture* is the proof. Line 1 is the lower, plain part of each bar: accepted drafts. Line 2 is the dotted part: words
# that come after a refusal. Line 3 is the black line: the two parts together reach p, for every word.
#
# It also shows how often a draft is accepted: β, the sum of the plain parts. The dotted parts sum up to 1 − β, and that
# number has a name: the **total variation** between p and q, half the sum of |p − q|.

# %%
beta = np.minimum(p, q).sum()
print(f"computed: β = Σ min(p, q) = {beta:.2f}, 1 − TV(p, q) = {1 - total_variation(p, q):.2f}")
print(f"counted:  {accepted.mean():.2f}")

# %% [markdown]
# ## Without a sample
#
# A count over 200,000 draws is right to two digits. A mistake that shifts a probability by a thousandth would hide in it.
# For a small vocabulary one can do better: go through *everything that can happen*. The code's `decide` is a function of
# its random numbers; for each possible draft, `emitted_law` finds by bisection where its decision changes, and adds up the
# probabilities. It never looks inside, so it can check any rule.
#
# It uses toy models: tables that hold a distribution over four words for each text so far. `claimed` is the q that the rule
# is told, `drawn` the one that drafts are really drawn from.

# %%
FULL = decoding.Sampling(temperature=1.0)


def table(logits, temperature=1.0):
    return np.asarray(token_probs(jnp.asarray(logits), decoding.Sampling(temperature)))


target_table, draft_table = table(TARGET), table(DRAFTERS["unrelated"])

# %%
right = jax.jit(decide)


def distance(rule, gamma=1, drawn=draft_table, claimed=draft_table):
    """Total variation between what the rule emits and the target's distribution."""
    law = emitted_law(Round(target_table, drawn, claimed, rule), gamma)
    return total_variation(law, target_law(target_table, (), gamma + 1))


print(f"one draft: {distance(right):.1e}")

# %% [markdown]
# That is rounding: `decide` works with 23-bit random numbers. With one draft, `emitted_law` gives the distribution of *two*
# words, since a round emits up to γ + 1. Where it emits fewer, the target writes the rest. So this also checks the bonus
# token.
#
# With more drafts, each is judged like the first, given those before it. So the theorem holds at every place, and the whole
# text is right. **Predict:** how many different drafts are there for γ = 3?

# %%
for gamma in (2, 3):
    print(f"γ = {gamma}: {len(list(itertools.product(words, repeat=gamma)))} drafts, {distance(right, gamma):.1e}")

# %% [markdown]
# ## The real pair
#
# The pair that comes with the package has 2,048 words, and its p and q differ at every step. Here are 200 steps: the target
# writes a text, and at 200 places in it the drafter proposes one token. `prefill` reads all 200 beginnings as one batch.

# %%
target, draft_model, tokenizer = decoding.load_pair()
prompt = [target.config.bos_token_id, *tokenizer.encode("And it came to pass", add_special_tokens=False).ids]
how = {"max_new_tokens": 216, "sampling": FULL, "key": jax.random.key(1), "loop": "plain"}
text = decoding.generate_autoregressive(target, prompt, **how).tokens[0].tolist()
pieces = [[target.config.bos_token_id, *text[i : i + 16]] for i in range(200)]
state = decoding.prefill(target, pieces, decoding.Options(1, FULL), max_new_tokens=2, key=jax.random.key(2))
shared = drafter.share_cache(state.cache, target.config)
how = {"draft_length": 1, "sampling": FULL}
drafted = decoding.draft(target, draft_model, state.token, state.hidden, shared, jax.random.key(3), **how)
verified = jax.jit(decoding.verify)(target, state.cache, state.token, drafted.tokens)
real_p, real_q = token_probs(verified.logits, FULL), drafted.probs
print("the text goes on:", tokenizer.decode(text[:24]))

# %% [markdown]
# For each step we compute β, and we let the rule decide over 200 drafts, drawn from that step's q.
#
# **Predict:** will the points lie on a line?


# %%
@jax.jit
def share_accepted(p, q, key):
    draft_key, accept_key = jax.random.split(key)
    token = sample_from(q[:, 0], jax.random.uniform(draft_key, (200,)))
    return decoding.accept(p, token[:, None], q, accept_key).num_accepted


keys = jax.random.split(jax.random.key(4), 200)
counted = np.mean([share_accepted(real_p, real_q, key) for key in keys], axis=0)
betas = np.minimum(real_p[:, 0], real_q[:, 0]).sum(axis=-1)
print(f"computed {betas.mean():.2f}, counted {counted.mean():.2f}")
figures.overlap_and_counts(betas, counted)

# %% [markdown]
# *The picture:* one point for each of the 200 steps: β on the x axis, and the share of its 200 drafts that were accepted on
# the y axis. They scatter around the dashed line as counts of 200 do. Some steps are easy (the middle of a word: β near 1),
# some are hard.
#
# Here is one hard step, drawn like the toy:

# %%
hard = int(np.argsort(betas)[30])
step_p, step_q = np.asarray(real_p[hard, 0]), np.asarray(real_q[hard, 0])
top = np.argsort(-np.maximum(step_p, step_q))[:9]
print(f"after …{tokenizer.decode([*pieces[hard][-8:], int(state.token[hard])])!r}, β = {betas[hard]:.2f}")
figures.two_parts([tokenizer.decode([token]).strip() or "(space)" for token in top], step_p[top], step_q[top])

# %% [markdown]
# *The picture:* the nine words that one of the two models finds likeliest. Where a bar is mostly plain, the drafter
# proposes the word often enough; where it is mostly dotted, the target has to bring it in itself.
#
# ## Greedy is no case of its own
#
# With temperature 0 the target's distribution is **one-hot**: 1 for its likeliest word, 0 for the others. Then u < p/q
# holds always or never, and the rule says: accept the draft if it is the likeliest word, else emit that word.
# `accept_greedy` does just this, without random numbers.

# %%
one_hot = token_probs(verified.logits, decoding.Sampling(temperature=0.0))
by_rule = decoding.accept(one_hot, drafted.tokens, real_q, jax.random.key(5))
shortcut = decoding.accept_greedy(verified.logits, drafted.tokens)
print("accepted alike:", bool((by_rule.num_accepted == shortcut.num_accepted).all()), end=", ")
print("next tokens alike:", bool((by_rule.next_token == shortcut.next_token).all()))

# %% [markdown]
# ## Three rules that look right
#
# Each has a reason that sounds good.
#
# - *no residual*: after a refusal, draw from p. (It is the target's distribution, after all.)
# - *only the best*: accept a draft if it is the target's likeliest word, otherwise draw from p.
# - *soft q*: draft greedily, but tell the rule the drafter's probabilities q. (These are what the drafter computed.)
#
# **Predict** for the first: which words come too often, those that the drafter likes or those that it neglects?


# %%
def no_residual(target_probs, tokens, draft_probs, uniforms):
    num_accepted, _ = decide(target_probs, tokens, draft_probs, uniforms)
    there = target_probs[jnp.arange(len(tokens)), num_accepted]
    return num_accepted, sample_from(there, uniforms[:, -1])


def only_the_best(target_probs, tokens, draft_probs, uniforms):
    best = target_probs[:, :-1].argmax(axis=-1)
    num_accepted = jnp.cumprod(tokens == best, axis=1).sum(axis=1)
    there = target_probs[jnp.arange(len(tokens)), num_accepted]
    return num_accepted, sample_from(there, uniforms[:, -1])


# %%
greedy_table = table(DRAFTERS["unrelated"], temperature=0.0)
wrong = {
    "no residual": {"rule": jax.jit(no_residual)},
    "only the best": {"rule": jax.jit(only_the_best)},
    "soft q": {"rule": right, "drawn": greedy_table},
}
first_words = {}
for name, case in wrong.items():
    how = {"drawn": draft_table, "claimed": draft_table, **case}
    law = emitted_law(Round(target_table, how["drawn"], how["claimed"], how["rule"]), 1)
    first_words[name] = law.sum(axis=1)
    print(f"{name:14} total variation {distance(**case):.3f}")
figures.biases(words, target_table[0], first_words)

# %% [markdown]
# *The picture:* for each rule, the first word's distribution beside p. "No residual" emits too much of what the drafter
# likes. "Only the best" makes the likeliest word likelier still: text that looks good and is less varied. "Soft q" also
# emits too much of the drafter's favourite, for it is *always* proposed, and refused as if it had been proposed with
# probability q.
#
# The texts of these rules read well. No reader notices, and no benchmark of speed does. That is why the distribution is
# checked by enumeration in the [tests](../tests/properties/test_law.py).
#
# ## Temperature on one side
#
# The drafter may have any temperature, as long as the rule is told the q that drafts were *drawn* from.

# %%
sharp_table = table(DRAFTERS["unrelated"], temperature=0.5)
told, not_told = distance(right, drawn=sharp_table, claimed=sharp_table), distance(right, drawn=sharp_table)
print(f"drafts at temperature 0.5, rule told so:   {told:.1e}")
print(f"drafts at temperature 0.5, rule told of 1: {not_told:.3f}")

# %% [markdown]
# ## What you saw
#
# - A draft is drafted and accepted with probability min(p, q); a refusal adds p − min(p, q); together that is p.
# - The acceptance probability is β = Σ min(p, q) = 1 − TV(p, q).
# - Enumeration over all drafts and all random numbers shows an error of rounding for the right rule, and percents for wrong
#   ones.
# - Greedy decoding is the same rule with a one-hot p.
# - The rule must be told the q that the drafts were drawn from.

# %%
assert distance(right, gamma=3) <= 1e-6 and told <= 1e-6
assert min(not_told, *(distance(**case) for case in wrong.values())) > 1e-2
assert abs(betas.mean() - counted.mean()) < 0.02

# %% [markdown]
# ## Exercises
#
# **6.1 Predict.** p = (0.5, 0.3, 0.2) and q = (0.2, 0.3, 0.5). With what probability is a draft accepted? If it is refused,
# which word (0, 1 or 2) comes?

# %%
is_right = check_1(acceptance=None, word=None)

# %% [markdown]
# **6.2 Change the code.** Write `residual(p, q)` for one place, NumPy arrays in and a distribution out. What should it
# return if p and q are equal?


# %%
def residual(p, q):
    return p  # yours


is_right = check_2(residual)

# %% [markdown]
# **6.3 Prove.** Show that Σ min(p, q) = 1 − TV(p, q), with TV(p, q) = ½ Σ |p − q|. (Which is the larger of a and b, which
# is the smaller, and what is the difference?) Then find the q over three words that is accepted *least* for p = (0.5, 0.3,
# 0.2). And which q gives the least acceptance among those that give every word at least 0.1?

# %%
is_right = check_3(worst=None, worst_with_a_tenth=None)

# %% [markdown]
# The answers are in [answers/06_accept_and_reject.py](answers/06_accept_and_reject.py).
#
# ## What to read next
#
# - [accept.py](../decoding/stages/accept.py): the rule, for a batch, in fifteen lines.
# - [law_check.py](../decoding/oracle/law_check.py): how the enumeration works.
# - [07 · Judging a block](07_block_verification.ipynb): the same distribution with more drafts accepted.
# - Leviathan et al. 2023, [Fast inference from transformers via speculative decoding](https://arxiv.org/abs/2211.17192).
