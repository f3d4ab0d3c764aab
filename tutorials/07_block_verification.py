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
# # 07 · Judging a block
#
# **Can one accept more drafts without changing the distribution of the text?**
#
# *30 minutes.* Before: [06 · Accept, reject, and the theorem](06_accept_and_reject.ipynb).
#
# Afterwards you can
#
# - say which chances the rule of tutorial 06 throws away,
# - judge a block of drafts by their running weight, and
# - measure the gain, with its error.
#
# The page explains [accept_block.py](../decoding/stages/accept_block.py). The method is **block verification**, Sun et al.
# 2024 ([arXiv 2403.10444](https://arxiv.org/abs/2403.10444)). Terms are in the [glossary](glossary.md).

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
from decoding.oracle.law_check import DRAFTERS, TARGET, Round, emitted_law, tables, target_law, total_variation
from decoding.sampling import sample_from, token_probs
from decoding.stages.accept import decide, residual
from decoding.stages.accept_block import decide_block
from exercises.block_verification import check_1, check_2, check_3
from figures import block_verification as figures
from figures import style

# %% [markdown]
# ## A chance thrown away
#
# p is what the target gives to a draft, q what the drafter gave. Token by token, a draft is accepted with probability
# min(1, p/q), and the first refusal ends the round. So a run of i drafts is kept with the *product* of these numbers.
#
# Take four drafts whose ratios p/q are 0.5, 2, 1 and 0.8. The first one is too bold: the drafter likes it twice as much as
# the target. The second makes up for it: the target likes it twice as much as the drafter. Both together the target would
# write as often as the drafter does. And yet half of these runs end at the first draft.
#
# Block verification looks at the run instead. Its weight starts at 1, is multiplied by each ratio, and never exceeds 1:
#
#     w₀ = 1,    wᵢ = min(1, wᵢ₋₁ · pᵢ / qᵢ)
#
# **Predict:** the four weights.


# %%
def token_chances(ratios):
    return np.cumprod(np.minimum(ratios, 1))


def weights(ratios):
    running = [1.0]
    for ratio in ratios:
        running.append(min(1.0, running[-1] * ratio))
    return np.array(running[1:])


style.use()
ratios = [0.5, 2, 1, 0.8]
print("token by token:", token_chances(ratios).tolist(), " weights:", weights(ratios).tolist())
figures.chances(ratios, {"token by token": token_chances(ratios), "by block": weights(ratios)})

# %% [markdown]
# *The picture:* for each run of 1 to 4 drafts, the probability that it is kept. Token by token (striped) the 0.5 of the
# first draft is never regained. By block (plain) the second draft regains it. The weight *is* the probability that a run is
# kept; that is proved in the paper, and we shall count it below.
#
# ## The order matters
#
# **Predict:** the ratios are 2 and then 0.5. Which rule keeps more?

# %%
for some in ([0.5, 2], [2, 0.5], [0.5, 0.5, 4], [0.5, 4, 0.5]):
    print(f"{some!s:14} token by token {token_chances(some)[-1]:.3f}   by block {weights(some)[-1]:.3f}")

# %% [markdown]
# A surplus makes up for a deficit *before* it, never for one behind it. Why? The target writes the first word twice as
# often as the drafter proposes it. But a word cannot be kept more often than it is proposed: the surplus of the first place
# comes into the text by the residual distribution, without the second draft. That is why w is capped at 1 at every place,
# and not only at the end.
#
# ## The rule
#
# How does one keep each run with probability w, when the runs of a block contain each other? The rule goes through all of
# them and takes the longest that passes its test. A run of i drafts leaves something for the target to add, its own
# residual:
#
#     rᵢ = max(wᵢ · pᵢ₊₁ − qᵢ₊₁, 0),    sᵢ = Σ rᵢ
#
# Here p and q with index i + 1 are the whole distributions behind the run; behind the last draft nothing is proposed, so q
# is 0 there, and s = w. The run passes if
#
#     uᵢ < sᵢ / (sᵢ + 1 − wᵢ)
#
# and the next token is drawn from r, divided by its sum, of the longest run that passes. Here it is for one block.


# %%
def thresholds(p, q, tokens):
    """For each run: its weight, and the number that u must be below.  p [γ + 1, words], q [γ, words]."""
    found, weight = [], 1.0
    for i, token in enumerate(tokens):
        weight = min(1.0, weight * p[i, token] / q[i, token])
        proposed = q[i + 1] if i + 1 < len(tokens) else 0
        surplus = np.maximum(weight * p[i + 1] - proposed, 0).sum()
        found.append((weight, surplus / (surplus + 1 - weight) if surplus > 0 else 0.0))
    return np.array(found).T


# %%
def longest_run(p, q, tokens, uniforms):
    passing = np.flatnonzero(uniforms < thresholds(p, q, tokens)[1])
    return passing.max() + 1 if len(passing) else 0


# %% [markdown]
# ## The real pair
#
# The target writes a text; at 200 places in it the drafter proposes a block of γ = 4, eight times over: 1,600 blocks. Both
# rules get the same drafts and the same random numbers.

# %%
FULL, GAMMA, PLACES = decoding.Sampling(temperature=1.0), 4, 200
target, draft_model, tokenizer = decoding.load_pair()
prompt = [target.config.bos_token_id, *tokenizer.encode("And it came to pass", add_special_tokens=False).ids]
how = {"max_new_tokens": PLACES + 16, "sampling": FULL, "key": jax.random.key(1), "loop": "plain"}
text = decoding.generate_autoregressive(target, prompt, **how).tokens[0].tolist()
pieces = [[target.config.bos_token_id, *text[i : i + 16]] for i in range(PLACES)]
state = decoding.prefill(target, pieces, decoding.Options(GAMMA, FULL), max_new_tokens=8, key=jax.random.key(2))


# %%
@jax.jit
def judge(target, draft_model, state, key):
    """A block at each place, and how many of its drafts each rule keeps."""
    draft_key, accept_key = jax.random.split(key)
    start = state.token, state.hidden, drafter.share_cache(state.cache, target.config)
    drafted = decoding.draft(target, draft_model, *start, draft_key, draft_length=GAMMA, sampling=FULL)
    p = token_probs(decoding.verify(target, state.cache, state.token, drafted.tokens).logits, FULL)
    given = p, drafted.tokens, drafted.probs, jax.random.uniform(accept_key, (PLACES, GAMMA + 1))
    return given, decide(*given).num_accepted, decide_block(*given).num_accepted


# %%
judged = [judge(target, draft_model, state, key) for key in jax.random.split(jax.random.key(3), 8)]
given, by_token, by_block = (list(each) for each in zip(*judged, strict=True))
p, tokens, q, u = map(np.asarray, given[0])
by_hand = [longest_run(p[i], q[i], tokens[i], u[i, :GAMMA]) for i in range(PLACES)]
print("by hand as decide_block:", bool((np.array(by_hand) == by_block[0]).all()))

# %% [markdown]
# **Predict:** is there a block of which the new rule keeps *less*, with the same random numbers?

# %%
difference = np.array(by_block) - np.array(by_token)  # [draw, place]
for change in range(-GAMMA, GAMMA + 1):
    if count := (difference == change).sum():
        print(f"{change:+d} drafts: {count:4d} blocks")

# %% [markdown]
# There is: u has another meaning in the two rules. Only on average does the new rule keep at least as many. So here is the
# average. The eight blocks of one place resemble each other, so we take the mean of each place, and the standard error over
# the 200 places. (Both rules see the same places, so the *difference* is known better than either mean.)


# %%
def mean_and_error(values):
    """Over places; values [draw, place]."""
    means = np.mean(values, axis=0)
    return means.mean(), means.std(ddof=1) / np.sqrt(len(means))


kept = {"token by token": np.array(by_token), "by block": np.array(by_block)}
for name, values in kept.items():
    print("{:15} {:.2f} ± {:.2f} of 4 drafts kept".format(name, *mean_and_error(values)))
gain, error = mean_and_error(difference)
print(f"the gain        {gain:.2f} ± {error:.2f}, which is {gain / error:.0f} standard errors")
at_least = {name: [mean_and_error(values >= i) for i in range(1, GAMMA + 1)] for name, values in kept.items()}
shares, errors = ({name: np.array(pairs)[:, i] for name, pairs in at_least.items()} for i in (0, 1))
figures.kept_at_least(shares, errors)

# %% [markdown]
# *The picture:* the share of blocks of which at least 1, 2, 3, 4 drafts are kept, with bars of two standard errors. At the
# first draft the rules are alike: a run of one has nothing before it to make up for. The gain grows along the block.
#
# ## Where they differ
#
# Here is the block that gained most, of those where the first draw kept nothing token by token.

# %%
case = int(np.argmax(difference[0]))
at = np.arange(GAMMA), tokens[case]
weight, block_threshold = thresholds(p[case], q[case], tokens[case])
token_threshold = np.minimum(p[case, :GAMMA][at] / q[case][at], 1)
both = {"token by token": token_threshold, "by block": block_threshold}
words = [tokenizer.decode([int(token)]) for token in tokens[case]]
print(f"after …{tokenizer.decode(pieces[case][-6:] + [int(state.token[case])])!r}: {''.join(words)!r}")
print("p/q:", *(f"{ratio:.2f}" for ratio in p[case, :GAMMA][at] / q[case][at]))
counts = {name: int(values[0, case]) for name, values in kept.items()}
figures.two_verdicts(words, u[case, :GAMMA], both, counts, weight)

# %% [markdown]
# *The picture:* the same block by both rules. Bars are thresholds, black lines the random numbers u. On the left the first
# line above its bar ends the run. On the right the *last* line below its bar decides, whatever came before. The diamonds
# are the weights of the runs; at the last draft the threshold is the weight.
#
# ## Still the target's distribution?
#
# Enumeration, as in tutorial 06: all drafts over four words, all random numbers.
#
# A run with a surplus behind it invites a mistake: to multiply the ratios *without* the cap, and to cap only in the test.
# **Predict:** is that wrong for γ = 1? For γ = 2?


# %%
def without_cap(target_probs, tokens, draft_probs, uniforms):
    p = jnp.take_along_axis(target_probs[:, :-1], tokens[..., None], -1)[..., 0]
    product = jnp.cumprod(p / jnp.take_along_axis(draft_probs, tokens[..., None], -1)[..., 0], axis=1)
    product = jnp.pad(product, ((0, 0), (1, 0)), constant_values=1)
    proposed = jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))
    rest = residual(product[..., None] * target_probs, proposed)
    surplus, missing = rest.sum(-1)[:, 1:], jnp.maximum(1 - product[:, 1:], 0)
    passes = uniforms[:, :-1] * (surplus + missing) < surplus
    num_accepted = jnp.where(passes, jnp.arange(1, passes.shape[1] + 1), 0).max(axis=1)
    return num_accepted, sample_from(rest[jnp.arange(len(tokens)), num_accepted], uniforms[:, -1])


# %%
toy_p, toy_q = (np.asarray(token_probs(jnp.asarray(logits), FULL)) for logits in (TARGET, DRAFTERS["unrelated"]))


@functools.cache
def distance(name, gamma):
    rule = {"token by token": decide, "by block": decide_block, "without the cap": without_cap}[name]
    a_round = Round(toy_p, toy_q, toy_q, jax.jit(rule), by_block=name != "token by token")
    return total_variation(emitted_law(a_round, gamma), target_law(toy_p, (), gamma + 1))


cases = [("token by token", 3), ("by block", 3), ("without the cap", 1), ("without the cap", 2)]
figures.distances({f"{name}, γ = {gamma}": distance(name, gamma) for name, gamma in cases}, tolerance=1e-6)

# %% [markdown]
# *The picture:* the total variation between what a round emits and the target's distribution, on a logarithmic axis. Both
# rules are left of the dashed line: what remains is the rounding of the random numbers. Without the cap the rule is right
# for one draft, and off by percents for two.
#
# ## A run is kept with its weight
#
# Now the promised count. In the toy we fix two drafts, the first with p/q < 1 and the second with p/q > 1, let the drafter
# draw the third, and count how often at least the two are kept.

# %%
P, all_drafts, Q = tables(Round(toy_p, toy_q, toy_q, decide_block), 3)
ratio = np.take_along_axis(P[:, :3] / Q, all_drafts[..., None], -1)[..., 0]
first = np.flatnonzero((ratio[:, 0] < 0.9) & (ratio[:, 1] > 1.5))[0] // 4 * 4  # the first of four with the same two
rng, count = np.random.default_rng(0), 100_000
rows = first + rng.choice(4, count, p=Q[first, 2] / Q[first, 2].sum())
many = [jnp.asarray(x) for x in (P[rows], all_drafts[rows], Q[rows], rng.random((count, 4), dtype=np.float32))]
kept_two = {rule: (rule(*many).num_accepted >= 2).mean() for rule in (decide, decide_block)}
print("p/q of the two: {:.2f} and {:.2f}".format(*ratio[first]))
print(f"token by token: product {token_chances(ratio[first, :2])[-1]:.2f}, counted {kept_two[decide]:.2f}")
print(f"by block:       weight  {weights(ratio[first, :2])[-1]:.2f}, counted {kept_two[decide_block]:.2f}")

# %% [markdown]
# More than its weight no rule can keep of a run, if the text is to be right: this is theorem 2 of the paper. So this rule
# is the best there is, as long as only the drafts' probabilities are known.
#
# ## What you saw
#
# - Token by token, a run is kept with the product of min(1, p/q): a deficit is never regained.
# - By block, it is kept with its weight: the product of p/q, capped at 1 at every place.
# - A surplus makes up for deficits before it, not behind it.
# - The distribution of the text is the same; for a single draft, so are the rules.
# - On the pair the gain is a seventh of a draft per round, and it costs nothing: no model runs for it.

# %%
assert max(distance("token by token", 3), distance("by block", 3), distance("without the cap", 1)) <= 1e-6
assert distance("without the cap", 2) > 1e-3
assert gain > 2 * error and (np.array(by_hand) == by_block[0]).all()

# %% [markdown]
# ## Exercises
#
# **7.1 Predict.** Three drafts with p/q = 0.4, 2 and 1.5. With what probability are all three kept, token by token and by
# block?

# %%
is_right = check_1(token_by_token=None, by_block=None)

# %% [markdown]
# **7.2 Change the code.** Write `mean_kept(ratios, by_block)`: how many drafts of one block are kept on average, by either
# rule. You know the probability that at least 1, 2, … are kept; the sum of these is the mean. (Why?)


# %%
def mean_kept(ratios, by_block):
    return 0.0  # yours


is_right = check_2(mean_kept)

# %% [markdown]
# **7.3 Prove.** Show that for γ = 1 the test "u < s / (s + 1 − w)" is the old one, u < p/q. Then say which of these blocks
# of ratios the two rules treat alike, at every place: a (2, 0.5, 0.3) · b (0.5, 1.5, 0.8) · c (0.9, 0.8, 0.7) · d (0.9,
# 1.1, 1).

# %%
is_right = check_3(alike=None)  # such as "bd"

# %% [markdown]
# The answers are in [answers/07_block_verification.py](answers/07_block_verification.py).
#
# ## What to read next
#
# - [accept_block.py](../decoding/stages/accept_block.py): the rule for a batch; its comment has the case 0/0.
# - [08 · When is it faster?](08_when_is_it_faster.ipynb): what a draft more per round is worth in seconds.
# - `gemma4-mtp generate "And it came to pass" --temperature 1 --acceptance block`
