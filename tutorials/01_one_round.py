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
# # 01 · One round of speculative decoding
#
# **How can five tokens cost about as much as one, and why is the text no worse?**
#
# *15 minutes.* You need NumPy, and to know what a transformer does: token ids in, a probability for every possible next
# token out. You need no JAX: `jnp` is NumPy on another backend, `jax.jit` compiles a function when it is first called, and
# random numbers come from a key that is passed around.
#
# Afterwards you can
#
# - say what a target, a drafter, a draft and a round are,
# - do one round by hand, with its random numbers, and
# - say which part of the method decides the speed, and which the text.
#
# Terms are explained where they first appear; the [glossary](glossary.md) has all of them.
#
# The **target** is the model whose text we want. The **drafter** is a much smaller model that guesses what the target will
# say. The pair that comes with the package writes English of 1611: the target has 12 million parameters and was trained on
# the King James Bible, the drafter has one million.

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np

import decoding
import drafter
from decoding.sampling import token_probs
from exercises.one_round import check_1, check_2, check_3
from figures import one_round as figures
from figures import style

style.use()
target, draft_model, tokenizer = decoding.load_pair()

# %% [markdown]
# Tokens are numbers; `word` gives their text, and `prompt` holds the ids of the text that the target has to continue. With
# temperature 0.7 the target *draws* each token from its distribution, a little sharpened.
#
# `fresh_state()` lets the target read the prompt and draw the first token: this is called **prefill**. The function makes
# the state anew each time, because a compiled round takes over its buffers (JAX says the state is *donated*), so a state
# can be used only once.

# %%
GAMMA = 4  # γ, how many tokens the drafter proposes a round
OPTIONS = decoding.Options(GAMMA, decoding.Sampling(temperature=0.7))
prompt = [target.config.bos_token_id, *tokenizer.encode("And it came to pass", add_special_tokens=False).ids]


def word(token):
    return tokenizer.decode([int(token)])


def fresh_state(options=OPTIONS):
    return decoding.prefill(target, [prompt], options, max_new_tokens=64, key=jax.random.key(18))


# %% [markdown]
# ## One round, from above
#
# `speculative_step` does one whole **round**. Here is what it did after "And it came to pass at".

# %%
after = decoding.speculative_step(target, draft_model, fresh_state(), OPTIONS)
drafts, emitted = after.last.draft_tokens[0], after.last.tokens[0, : int(after.last.num_emitted[0])]
newest = word(fresh_state().token[0])
print(f"And it came to pass{newest}", "|", "".join(map(word, emitted)))
figures.round_in_boxes(newest, list(map(word, drafts)), len(emitted) - 1, word(emitted[-1]))

# %% [markdown]
# *The picture, row by row.* The drafter **drafts** four tokens: "the first year ,". The target judges all four in one
# forward pass (it **verifies** them) and **accepts** "the" and "first". It refuses "year", so that nobody looks at the
# comma behind it. The round **emits** three tokens: the two accepted ones, and " time", which the target chose itself. Such
# a token of its own comes with every round. After a refusal it is a *correction*; if all four drafts are accepted, it is a
# fifth token, the **bonus token**. The last row is the target's memory, the **KV cache**: the refused drafts are taken
# back, which is called **rollback**.
#
# So one pass of the target gave three tokens. Two questions are left: what does such a pass cost, and is the text as good
# as the target's own?

# %% [markdown]
# ## What a pass costs
#
# First the plain way, called **autoregressive**: one pass for each token, and each pass has to read all of the target's
# weights from memory. Here are 24 tokens; the first call compiles, the second is timed.

# %% tags=["timing"]
for _ in range(2):
    start = time.perf_counter()
    how = {"max_new_tokens": 24, "sampling": OPTIONS.sampling, "key": jax.random.key(6)}
    plain = decoding.generate_autoregressive(target, prompt, loop="plain", **how)
    seconds = time.perf_counter() - start
print("And it came to pass" + tokenizer.decode(plain.tokens[0]))
print(f"24 tokens, one after the other: {1000 * seconds:.1f} ms, {1000 * seconds / 24:.1f} ms each")

# %% [markdown]
# Now one pass over *several* tokens. They share the reading of the weights, and only the arithmetic grows.
#
# **Predict:** a pass over five tokens takes how many times as long as a pass over one? Once? Five times?
#
# Each figure is the shortest of 30 runs, because whatever else your machine does can only make one longer.

# %% tags=["timing"]
verify = jax.jit(decoding.verify)
state = fresh_state()
some_drafts = {count: jnp.ones((1, count - 1), jnp.int32) for count in (1, 2, 3, 5, 9)}
pass_seconds = dict.fromkeys(some_drafts, np.inf)
for _ in range(30):  # the first one compiles
    for count, ids in some_drafts.items():  # in turns
        start = time.perf_counter()
        verify(target, state.cache, state.token, ids).logits.block_until_ready()
        pass_seconds[count] = min(pass_seconds[count], time.perf_counter() - start)
print(f"a pass over 5 tokens takes {pass_seconds[5] / pass_seconds[1]:.2f} times as long as a pass over 1")
figures.pass_times(list(pass_seconds), list(pass_seconds.values()))

# %% [markdown]
# *The picture:* the solid line is the time of one pass over 1 to 9 tokens; the dashed one is what that many passes over one
# token would take. From one token to two there may be a step. After that the line is nearly flat. With a large model it is
# flat from the start, for there the reading of the weights takes nearly all of the time.
#
# That answers the first half of the question: five tokens in one pass cost far less than five passes, *if somebody can say
# which five*. That is what the drafter is for. Now the round again, by hand.
#
# ## Draft
#
# The drafter writes four tokens, one after the other. It starts from two things: the newest token, and the target's
# **hidden state**, the vector from which the target drew that token. It also reads the target's cache, `shared`. Beside
# each token, `decoding.draft` returns the distribution from which the drafter drew it. We call this distribution **q**.

# %%
_, draft_key, accept_key = jax.random.split(state.key, 3)
shared = drafter.share_cache(state.cache, target.config)
how = {"draft_length": GAMMA, "sampling": OPTIONS.sampling}
drafted = decoding.draft(target, draft_model, state.token, state.hidden, shared, draft_key, **how)
tokens = np.asarray(drafted.tokens[0])
q = np.asarray(drafted.probs[0])
for i, token in enumerate(tokens):
    print(f"draft {i + 1}: {word(token)!r:9} drawn with probability {q[i, token]:.3f}")

# %% [markdown]
# ## Verify
#
# The target reads the newest token and the four drafts in one pass.
#
# **Predict:** how many distributions come out, for four drafts?

# %%
verified = verify(target, state.cache, state.token, drafted.tokens)
p = np.asarray(token_probs(verified.logits, OPTIONS.sampling)[0])
print(f"{p.shape[0]} distributions over {p.shape[1]} tokens")


def likely_words(i, count=5):
    """The draft, and the likeliest other tokens at its place, by either model."""
    order = np.argsort(-np.maximum(p[i], q[i]))
    return [tokens[i], *order[order != tokens[i]][: count - 1]]


shown = np.array([likely_words(i) for i in range(GAMMA)])
shown_p, shown_q = (np.take_along_axis(probs[:GAMMA], shown, axis=1) for probs in (p, q))
figures.distributions([list(map(word, row)) for row in shown], shown_p, shown_q)

# %% [markdown]
# A transformer predicts the next token at *every* place. So the pass gives a distribution **p** behind the newest token and
# behind each draft: five, one to judge each draft with, and one for a token after the last draft.
#
# *The picture:* for each draft, the probabilities that the target (plain) and the drafter (striped) give to the draft
# itself (▸, bold) and to the four likeliest other words. For the first draft the two agree well. For the third, the drafter
# likes "year" much better than the target does.
#
# ## Accept
#
# The rule looks at one draft at a time. Let p and q be what the two models give to *this* token. The rule draws a random
# number u between 0 and 1, and accepts the draft if
#
#     u < p / q
#
# A token that the target likes at least as well as the drafter (p ≥ q) is always accepted. One that the target likes a
# fifth as well is accepted one time in five. The first refusal ends the round.
#
# **Predict:** with the probabilities in the picture above, which of the drafts are certain to be accepted?

# %%
u = np.asarray(jax.random.uniform(accept_key, (1, GAMMA + 1))[0])
num_accepted = 0
while num_accepted < GAMMA:
    i, token = num_accepted, tokens[num_accepted]
    is_accepted = u[i] * q[i, token] < p[i, token]  # u < p / q, without a division by 0
    verdict = "accepted" if is_accepted else "refused"
    print(f"{word(token)!r:9} p = {p[i, token]:.3f}  q = {q[i, token]:.3f}  u = {u[i]:.3f}  {verdict}")
    if not is_accepted:
        break
    num_accepted += 1
at = np.arange(GAMMA), tokens
figures.verdicts(list(map(word, tokens)), np.minimum(p[:GAMMA][at] / q[at], 1), u[:GAMMA], num_accepted)

# %% [markdown]
# *The picture:* one bar for each draft, from 0 to 1. Its left part, up to p / q, is where the draft is accepted; the
# crossed part is where it is refused. The black mark is u. "first" was lucky, "year" was not.
#
# ## The token of the target's own
#
# "year" is refused. What comes instead must not be drawn from p, or words that the drafter often proposes would get a
# second chance. It is drawn from what the target has *more* of than the drafter: max(p − q, 0), divided by its sum. This is
# the **residual distribution**. [Tutorial 06](06_accept_and_reject.ipynb) proves in three lines that the accepted tokens
# and these corrections together follow p exactly, whatever the drafter proposed.

# %%
residual = np.maximum(p[num_accepted] - q[num_accepted], 0)
residual = residual / residual.sum()
for token in np.argsort(-residual)[:3]:
    print(f"{word(token)!r:9} p = {p[num_accepted, token]:.3f}   residual = {residual[token]:.3f}")
own = np.argmax(np.cumsum(residual) > u[-1])  # drawn with the last random number
print(f"drawn: {word(own)!r}, and the residual of {word(tokens[num_accepted])!r} is", residual[tokens[num_accepted]])

# %% [markdown]
# ## Take back
#
# The pass wrote the newest token and all four drafts into the cache. **Predict:** how many of these five may stay?

# %%
kept = jnp.array([num_accepted + 1])  # the newest token, and the accepted drafts
cache = decoding.rollback(verified.cache, state.cache.length, kept)
print("tokens in the cache: before", state.cache.length[0], "· after verify", verified.cache.length[0], end="")
print(" · after rollback", cache.length[0])

# %% [markdown]
# Rollback changes that one number. It clears nothing, because no query looks beyond the length;
# [tutorial 03](03_kv_cache.ipynb) shows why that is enough. The token " time" is not in the cache yet: it is the newest token
# now, and the next round's pass begins with it.
#
# Is this what the compiled round did?

# %%
by_hand = [*map(int, tokens[:num_accepted]), int(own)]
print("by hand: ", list(map(word, by_hand)))
print("compiled:", list(map(word, emitted)))
assert by_hand == emitted.tolist() and int(cache.length[0]) == int(after.cache.length[0])

# %% [markdown]
# ## The text is the target's
#
# With temperature 0, **greedy** decoding, there is nothing random: the target always takes its likeliest token. Then the
# rule says: accept a draft if it is just that token. Here is the whole algorithm for this case, with *any* way to guess:
# `drafts_of` takes the text so far and returns γ tokens.
#
# Our guesser here knows nothing. It says the last four tokens again. **Predict:** what will the text look like?

# %%
GREEDY = decoding.Options(GAMMA, decoding.Sampling(temperature=0.0))


def write(drafts_of, count=48):
    state, passes = fresh_state(GREEDY), 0
    cache, newest, text = state.cache, state.token, state.token.tolist()
    while len(text) < count:
        drafts = jnp.array([drafts_of(text)], jnp.int32)
        verified, passes = verify(target, cache, newest, drafts), passes + 1
        num_accepted, newest = decoding.accept_greedy(verified.logits, drafts)
        text += [*drafts[0, : int(num_accepted[0])].tolist(), int(newest[0])]
        cache = decoding.rollback(verified.cache, cache.length, num_accepted + 1)
    return text[:count], passes


# %%
silly_text, silly_passes = write(lambda text: [*[0] * GAMMA, *text][-GAMMA:])
alone = decoding.generate_autoregressive(target, prompt, max_new_tokens=48, loop="plain")
speculative = decoding.generate(target, draft_model, prompt, max_new_tokens=48, draft_length=GAMMA, loop="plain")
print("And it came to pass" + tokenizer.decode(silly_text))
print(f"passes: alone {alone.stats.rounds}, silly drafts {silly_passes}, the drafter {speculative.stats.rounds}")
print("three times the same text:", silly_text == alone.tokens[0].tolist() == speculative.tokens[0].tolist())

# %% [markdown]
# A bad guesser changes the number of passes, and never the text. (Greedy text of so small a model soon repeats itself: it
# is here because it can be compared token by token. A sampled text differs from run to run, and only its distribution is
# the same.)
#
# ## Seconds
#
# Fewer passes are not yet less time, since the drafter needs some, too. So here are the seconds of 96 tokens both ways.
#
# **Predict:** with 3 to 4 tokens a pass, is it 3 to 4 times as fast?


# %% tags=["timing"]
def arrivals(generate):
    """(seconds, tokens) after each round, counted from the first token."""
    generate(max_new_tokens=96, loop="plain")  # compiles
    moments, counts = [], []
    record = lambda last: (moments.append(time.perf_counter()), counts.append(int(last.num_emitted[0])))
    generate(max_new_tokens=96, loop="plain", on_round=record)
    return list(zip(np.subtract(moments, moments[0]), np.cumsum(counts), strict=True))


with_drafter = arrivals(lambda **how: decoding.generate(target, draft_model, prompt, draft_length=GAMMA, **how))
without = arrivals(lambda **how: decoding.generate_autoregressive(target, prompt, **how))
print(f"96 tokens: {with_drafter[-1][0]:.2f} s with the drafter, {without[-1][0]:.2f} s without")
figures.texts_over_time(with_drafter, without)

# %% [markdown]
# *The picture:* tokens over seconds. The target alone rises one token at a time. With the drafter each step is a round, up
# to five tokens high. It is not as many times faster as there are tokens in a pass, since a round also drafts four tokens,
# and its pass is a little longer. [Tutorial 08](08_when_is_it_faster.ipynb) turns this into a formula.
#
# ## What you saw
#
# - A pass over five tokens takes little longer than a pass over one: both read all weights once.
# - A drafter guesses four tokens; the target checks them in one pass, which gives five distributions.
# - A draft is accepted if u < p / q. The first refusal is replaced by a token from the residual distribution.
# - The refused drafts leave the cache when its length goes back.
# - The drafter decides how many passes it takes. The text is the target's.
#
# The last check, over everything above:

# %%
assert silly_text == alone.tokens[0].tolist() == speculative.tokens[0].tolist()
assert speculative.stats.rounds < silly_passes <= alone.stats.rounds
assert by_hand == emitted.tolist()

# %% [markdown]
# ## Exercises
#
# **1.1 Predict.** γ = 4. How many tokens does a round emit if the third draft is refused? And if none is?

# %%
is_right = check_1(if_third_is_refused=None, if_none_is_refused=None)

# %% [markdown]
# **1.2 Change the code.** Write 48 tokens with `decoding.generate` as above, with γ = 1, 2, 4 and 8. Note the tokens a pass
# (`.stats.tokens_per_round`) and, with `arrivals`, the tokens a second. Which γ is best in each? Why are the two not the
# same?

# %%
is_right = check_2(tokens_per_pass={1: None, 2: None, 4: None, 8: None})

# %% [markdown]
# **1.3 Explain.** A drafter always says " the", four times. Is the text still the same, and how many passes do 48 tokens
# take? Say why before you run it with `write`. Then give the check what `write` returned, and the sentence that explains
# it:
#
# - a: the residual distribution puts the other words back
# - b: a draft stays only where the target's own choice is the same token
# - c: " the" is so frequent that p ≥ q nearly always

# %%
is_right = check_3(text=None, passes=None, because=None)

# %% [markdown]
# The answers are in [answers/01_one_round.py](answers/01_one_round.py).
#
# ## What to read next
#
# - [decoding/round.py](../decoding/round.py): the round that you did by hand, on one screen.
# - [06 · Accept, reject, and the theorem](06_accept_and_reject.ipynb): why the text follows p exactly.
# - [02 · One token through Gemma 4](02_one_token.ipynb): what is inside the target.
