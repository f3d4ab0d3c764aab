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
# # Train your own drafter
#
# **How is a drafter made, and what decides how many of its drafts are accepted?**
#
# *45 minutes, less than one of them training. Read [04](04_drafter.ipynb) and [08](08_when_is_it_faster.ipynb) before. It
# explains [drafter/training.py](../drafter/training.py).*
#
# Afterwards you can say what a drafter learns and from what, read its loss, explain why later drafts are accepted less and what
# unrolling does about it, and plug your drafter into the decoding loop.
#
# The shipped drafter took a quarter of an hour of training, on the King James Bible and on its target's text
# ([the log](../decoding/shipped_pair/king_james/training_log.jsonl) has the seconds). Ours gets a few hundred short steps, on
# text that the target writes for this page. It will be worse, and it shows every effect.

# %%
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
import gemma4.training
from decoding.bench.subject import held_out
from drafter import training
from exercises import train_a_drafter as exercises
from figures import style
from figures import train_a_drafter as figures

# %% [markdown]
# ## The text
#
# A drafter continues what its target writes. So the best text to train on is the target's own, at the temperature at which it
# will be used. Forty beginnings, 48 tokens each; the last eight texts are kept for measuring.

# %%
target, shipped, tokenizer = decoding.load_pair()
prompts = [text[:16] for text in held_out(tokenizer, target.config)[:40]]
written = decoding.generate_autoregressive(
    target, prompts, max_new_tokens=48, sampling=decoding.Sampling(1.0), key=jax.random.key(9), loop="on_device"
)
tokens = jnp.array([prompt + row.tolist() for prompt, row in zip(prompts, written.tokens, strict=True)])
print(f"{tokens.shape[0]} texts of {tokens.shape[1]} tokens; the first: {tokenizer.decode(tokens[0, 1:40].tolist())!r}")

# %% [markdown]
# ## What a draft step reads, and what it learns
#
# Take one position of a text, the **anchor**: the tokens before it are committed, and the drafter drafts four from there. Each
# step reads the [embedding](glossary.md) of the newest token and a [hidden state](glossary.md), sees the target's K/V of the
# committed tokens, and learns the target's *distribution* of the next token.

# %%
style.use()
words = [tokenizer.decode([token]) for token in tokens[0, 4:14].tolist()]
figures.anchor(words, committed=5, steps=4)

# %% [markdown]
# *A row for each draft step: blue, the committed tokens, the same in every row; hatched, e, the token whose embedding is
# read; green, p, the place whose distribution is learned; on the right, the hidden state that is read.*
#
# Why distributions and not the text? The text holds one token where the target had many in mind. A distribution says
# how probable each of 2,048 tokens was, which is far more to learn from. This is **distillation**. And acceptance compares
# distributions, too.
#
# All positions of all texts are anchors at once: a mask hides from each what comes later. The target runs once, beforehand.

# %%
learn, held = training.teach(target, tokens[:32]), training.teach(target, tokens[32:])
for name, array in (("embedding", learn.embedding), ("hidden", learn.hidden), ("probs", learn.probs)):
    print(f"{name:10} {array.shape}")
for kind, kv in learn.donors.items():
    print(f"{kind}: keys {kv.key.shape}")

# %% [markdown]
# ## A drafter that has learned nothing
#
# Two layers of width 64. Its head begins as the target's own, projected onto 64 dimensions; all else is random.
#
# **Predict:** 2,048 tokens. With which probability is a draft of an untrained drafter accepted: 1/2048, a few percent, or more?

# %%
small = drafter.config.config_for(
    target.config, width=64, mlp=128, heads=4, layers=("sliding_attention", "full_attention")
)
untrained = training.init_drafter(small, target)
acceptance = jax.jit(training.expected_acceptance, static_argnums=2)
before = np.asarray(acceptance(untrained, held, 4))
print("untrained: ", " ".join(f"{share:.2f}" for share in before))
p = np.asarray(held.probs, np.float64)
print(f"a flat distribution: {np.minimum(p, 1 / p.shape[-1]).sum(axis=-1).mean():.3f}")

# %% [markdown]
# About as often as with a flat distribution: the target is far from sure, and gives many tokens more than 1/2048.
#
# The probability of acceptance is Σ min(p, q) ([06](06_accept_and_reject.ipynb)), so nothing has to be generated to measure it.
#
# ## The loss
#
# The loss is the cross-entropy −Σ p log q, in nats. It is the entropy of p plus the Kullback-Leibler divergence of q from p, so
# it cannot fall to zero: the entropy of the target remains.

# %%
entropy = -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1).mean()
loss = jax.jit(training.draft_loss, static_argnums=2)
print(f"loss of the untrained drafter: {float(loss(untrained, held, 1)):.2f}; entropy of the target: {entropy:.2f}")
print(f"log of the vocabulary, the loss of a flat distribution: {np.log(p.shape[-1]):.2f}")


# %%
def train(model, steps, unrolled, measure_every=20):
    """The trained model, and (step, acceptance of drafts 1 to 4) along the way."""
    params, curve = training.trainable(model), []
    optimizer = gemma4.training.make_optimizer(
        gemma4.training.Schedule(steps, 6e-3, 4e-3, warmup=10, weight_decay=0.0), params
    )
    state, rng = optimizer.init(params), np.random.default_rng(0)
    for step in range(steps + 1):
        if step % measure_every == 0:
            curve.append((step, np.asarray(acceptance(exercises.with_weights(model, params), held, 4))))
        rows = jnp.asarray(rng.choice(32, 4, replace=False))
        params, state = exercises.one_step(optimizer, unrolled, model, params, state, rows, learn)
    return exercises.with_weights(model, params), curve


# %% [markdown]
# ## One step at a time
#
# First the drafter learns draft 1 alone: every anchor, one step.
#
# **Predict:** what happens to drafts 2 to 4, which nothing trains?

# %% tags=["timing"]
FIRST, SECOND = 80, 60  # steps of the optimizer
one_step, first_curve = train(untrained, FIRST, unrolled=1)
for step, shares in first_curve:
    print(f"after {step} steps:", " ".join(f"{share:.2f}" for share in shares))

# %% tags=["timing"]
figures.progress(*zip(*first_curve, strict=True), title="draft 1 alone is trained")

# %% [markdown]
# *Probability of acceptance over the steps, a marker for each draft.*
#
# Draft 1 rises quickly. Drafts 2 to 4 rise with it, because it is the same network, but stop earlier. The reason is in the
# picture of the anchor: from step 2 on the hidden state is the drafter's own, and nobody has told it what to put there.
#
# ## Four steps at a time
#
# **Unrolling** runs all four steps and adds their losses. The gradient of draft 4 goes back through the hidden states of steps
# 3, 2 and 1, so each step learns to leave something useful.
#
# **Predict:** which drafts gain, and does draft 1 lose?

# %% tags=["timing"]
trained, second_curve = train(one_step, SECOND, unrolled=4)
for step, shares in second_curve:
    print(f"after {step} steps:", " ".join(f"{share:.2f}" for share in shares))

# %% tags=["timing"]
curve = first_curve + [(FIRST + step, shares) for step, shares in second_curve[1:]]
figures.progress(*zip(*curve, strict=True), change=FIRST)

# %% [markdown]
# *Both phases, one after the other; the dashed line is where unrolling begins.*
#
# The later drafts have caught up, at no cost to draft 1. The keys and values of the drafts do not exist (the picture of the
# anchor: the blue part is the same in all rows), so whatever step 4 knows of drafts 1 to 3 has passed through one vector, the
# hidden state, and that is what unrolling has trained.
#
# ## How far is it to the shipped drafter?

# %% tags=["timing"]
after, best = (np.asarray(acceptance(model, held, 4)) for model in (trained, shipped))
print("ours:    ", " ".join(f"{share:.2f}" for share in after))
print("shipped: ", " ".join(f"{share:.2f}" for share in best))
expected = [1 + np.cumprod(shares).sum() for shares in (before, after, best)]
print("tokens a round, untrained, ours, shipped:", " ".join(f"{each:.2f}" for each in expected))
figures.beside(after, best, ("ours", "shipped"))

# %% [markdown]
# *Acceptance of each draft: hatched, ours; plain, the shipped drafter, which has more layers, more width, more text and more
# time.*
#
# Each single draft is as good as the first. The shares that `generate` prints fall from draft to draft all the same, because
# there a draft counts only if all before it were accepted: they are running products of these.
#
# ## Save it, load it, use it
#
# **Predict:** the drafter is mediocre. Is the text?

# %%
with tempfile.TemporaryDirectory() as folder:
    drafter.save(trained, f"{folder}/mine")
    mine = drafter.load(f"{folder}/mine")
prompt = held_out(tokenizer, target.config)[41][:24]
ours = decoding.generate(target, mine, prompt, max_new_tokens=32, draft_length=4)
text = ours.tokens[0].tolist()
best_tokens = gemma4.forward(target, [prompt + text[:-1]]).logits[0, len(prompt) - 1 :].argmax(axis=-1)
print("each token is the target's best:", best_tokens.tolist() == text)
print(repr(tokenizer.decode(text)))

# %% tags=["timing"]
print(f"{ours.stats.tokens_per_round:.2f} tokens a round with our drafter")

# %% [markdown]
# ## What you saw
#
# - A drafter learns the target's distributions, on the target's own text.
# - Acceptance can be computed from two distributions, without generating anything.
# - The loss ends at the target's entropy, not at zero.
# - Trained on one step, a drafter does not know what to hand to the next; unrolling teaches it.
# - A bad drafter costs time, never text.

# %%
assert after[0] >= before[0] + 0.2, "draft 1"
assert after[1] > first_curve[-1][1][1], "unrolling helps draft 2"
assert best[0] > after[0] and best_tokens.tolist() == text
assert (float(loss(trained, held, 1)) > entropy) and (float(loss(trained, held, 1)) < float(loss(untrained, held, 1)))
print("all as claimed")

# %% [markdown]
# ## Exercises
#
# **9.1 (predict)** The target gives three tokens the probabilities 0.5, 0.3 and 0.2 and all others none; the drafter is flat
# over 2,048 tokens. With which probability is its draft accepted?
#
# **9.2 (change the code)** Train on the text instead: write `text_teacher(teacher, tokens)`, which returns the same `Teacher`
# with `probs` that put everything on the token that the text has next (the last position may hold anything). Then train with
# it for 80 steps: how much of the gain is left?
#
# **9.3 (explain)** The loss of a drafter is 0.08 nats above the entropy, everywhere. Pinsker's inequality says that the total
# variation is at most √(KL / 2). What is the least probability of acceptance? Why is it no more than a bound?


# %%
def text_teacher(teacher, tokens):
    return teacher


verdicts = [exercises.check_1(None), exercises.check_2(text_teacher), exercises.check_3(None)]

# %% [markdown]
# ## What to read next
#
# [drafter/training.py](../drafter/training.py) has the loss and the alignment, and
# [decoding/shipped_pair/recipe.py](../decoding/shipped_pair/recipe.py) makes the shipped pair from nothing, in about two hours:
# `python -m decoding.shipped_pair.recipe --out DIR`. The last tutorial is [10](10_debug_an_engine.ipynb): what to do when
# acceptance is low because something is *wrong*.
