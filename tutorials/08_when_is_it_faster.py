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
# # When is it faster?
#
# **Given a machine and a drafter: how many tokens should a round draft, and what does it gain?**
#
# *35 minutes. Read [01](01_one_round.ipynb) and [06](06_accept_and_reject.ipynb) before. It explains
# [decoding/bench](../decoding/bench).*
#
# Afterwards you can predict the speed-up from three measured times and the acceptance, choose the [draft length
# γ](glossary.md), and say for a large model, without running it, at which batch size speculation stops to pay.
#
# Milliseconds here are those of the machine that ran this page, and yours differ. What does not differ is the text, and so how
# many drafts were accepted.

# %%
import jax
import numpy as np

from decoding import Options, fast
from decoding.bench import cost, loops, machine, stages, subject, work
from decoding.stages.prefill import prefill
from exercises import when_is_it_faster as exercises
from figures import style
from figures import when_is_it_faster as figures

style.use()
pair = subject.from_directories(None, None, "float32").for_backend()  # the shipped pair

# %% [markdown]
# ## What a round yields
#
# A round yields the accepted drafts and one token of the target's own. Let $a_k$ be the share of rounds in which drafts 1 to k
# are all accepted. Then a round with γ drafts yields $1 + a_1 + … + a_γ$ tokens on average. One run with γ = 8 measures all of
# them, because the drafts of a shorter round are the first ones of a longer round.
#
# **Predict:** the first draft is accepted in about nine of ten rounds. How often are the first eight?

# %%
LONGEST, NEW_TOKENS = 8, 64
prompts = subject.prompts(pair, count=4, tokens=48)
longest = loops.Loop(pair, NEW_TOKENS, fast.with_kernels(Options(LONGEST)), on_device=True)
laps = [longest.lap([prompt]) for prompt in prompts]
accepted = loops.typical([[lap] for lap in laps]).reached
print("accepted, up to draft 1, 2, ..:", " ".join(f"{share:.2f}" for share in accepted))
yields = {gamma: cost.tokens_per_round(accepted[:gamma]) for gamma in range(LONGEST + 1)}
print("tokens per round with γ = 1, 2, ..:", " ".join(f"{yields[gamma]:.2f}" for gamma in range(1, LONGEST + 1)))

# %% [markdown]
# The paper on speculative decoding uses one number α, the probability that a draft is accepted, the same at every place; then
# $a_k = α^k$. How good is that?
#
# **Predict:** α is taken from the first draft. Does the formula promise too much or too little for γ = 8?

# %%
alpha = accepted[0]
from_alpha = {gamma: cost.tokens_per_round([alpha**k for k in range(1, gamma + 1)]) for gamma in yields}
print(f"γ = 8: measured {yields[8]:.2f} tokens a round, with α = {alpha:.2f} everywhere {from_alpha[8]:.2f}")
figures.lines(
    {"measured": yields, "predicted with one α": from_alpha},
    "draft length γ",
    "tokens per round",
    title="the shipped pair",
)

# %% [markdown]
# *Tokens per round over γ: circles, solid, from the measured shares; squares, dashed, from one α. Both flatten, and the
# squares lie higher the longer the round.*
#
# ## What a round costs
#
# Three times decide: one step of the target, one pass of the target over γ + 1 tokens, and one draft. Each is timed alone, in
# a loop on the device, and all take turns, because a laptop changes its speed from second to second. The fastest lap of each
# counts: whatever else runs can only add time.


# %%
def timer(stage, gamma):
    options = fast.with_kernels(Options(gamma))
    state = prefill(pair.target, prompts[:1], Options(LONGEST), max_new_tokens=NEW_TOKENS, key=jax.random.key(0))
    return stages.Timer(stage, pair.target, pair.draft_model, state, options)


timers = {
    "step": timer(stages.autoregressive_stage, 1),
    "draft of 4": timer(stages.draft_stage, 4),
    "pass over 5": timer(stages.verify_stage, 4),
    "pass over 9": timer(stages.verify_stage, 8),
    "accept": timer(stages.accept_stage, 4),
}

# %% [markdown]
# **Predict:** one step takes t. How long does a pass over five tokens take: t, 2 t or 5 t?

# %% tags=["timing"]
rounds = [{name: each.lap() for name, each in timers.items()} for _ in range(5)]
seconds = {name: min(lap[name] for lap in rounds) for name in timers}
for name, each in seconds.items():
    print(f"{name}: {1e3 * each:.3f} ms, {each / seconds['step']:.3f} steps")

# %% tags=["timing"]
four = cost.Times(seconds["step"], seconds["draft of 4"], seconds["pass over 5"], seconds["accept"])
figures.timeline(four, 4, yields[4], title=machine.device_name())

# %% [markdown]
# *To scale: above, one round, a hatched draft and then the pass that verifies it; below, the steps that yield as many tokens.
# The difference of the lengths is the gain.*
#
# ## Why a pass over five tokens is not five steps
#
# A pass must *read* every weight from memory, once, for however many tokens; and it must *multiply* every weight with every
# token. For one token a machine waits for memory. `work.forward_work` counts both from the shapes alone, and the longer of the
# two is the least time (the roofline model). Let us count for an accelerator of 3.35 TB/s and 989 TFLOP/s (the data sheet of
# an H100 SXM, bfloat16), which this page does not need to have.
#
# **Predict:** from how many tokens on does arithmetic take longer than reading?

# %%
accelerator = machine.Machine("accelerator", bytes_per_second=3.35e12, flops_per_second=989e12)
released = {name: exercises.shapes(name) for name in ("E2B", "31B", "26B-A4B")}
counts = [2**power for power in range(11)]
passes = {
    name: {n: 1e3 * work.least_seconds(work.forward_work(target, 1, n, 1000), accelerator) for n in counts}
    for name, (target, _) in released.items()
}
for name, points in passes.items():
    print(f"{name:8} 1 token {points[1]:.2f} ms, 8 tokens {points[8]:.2f} ms, 1024 tokens {points[1024]:.2f} ms")
figures.lines(passes, "tokens in one pass", "least time, ms", log=True)

# %% [markdown]
# *Least time of a pass over the number of tokens, both axes logarithmic; one marker for each released model.*
#
# The dense models, E2B and 31B, are flat up to hundreds of tokens: a few more tokens are free. 26B-A4B is not. It is a mixture
# of experts ([MoE router](glossary.md)): one token reads 8 of 128 experts, but the next ones choose others, so eight tokens
# read about three times as many weights. And a laptop's processor has so little arithmetic for its memory that its
# line bends after a few tokens.
#
# ## The speed-up
#
# Tokens per round, times what one token costs, over what a round costs:


# %% tags=["timing"]
def predicted(gamma, tokens):
    verify = np.interp(gamma + 1, [1, 5, 9], [seconds["step"], seconds["pass over 5"], seconds["pass over 9"]])
    draft = gamma * seconds["draft of 4"] / 4
    return cost.speed_up(tokens, cost.Times(seconds["step"], draft, verify, seconds["accept"]))


prediction = {gamma: predicted(gamma, yields[gamma]) for gamma in range(1, LONGEST + 1)}
print(" ".join(f"γ = {gamma}: {ratio:.2f}" for gamma, ratio in prediction.items()))
rates = np.linspace(0, 1, 1001)
even = [predicted(4, cost.tokens_per_round([rate**k for k in range(1, 5)])) for rate in rates]
print(f"γ = 4 breaks even at an acceptance of α = {rates[np.argmax(np.array(even) >= 1)]:.2f}")

# %% [markdown]
# **Predict:** which γ is best? And is the gain at γ = 8 twice the gain at γ = 4?
#
# Now measure: whole generations, autoregressive and speculative, in turns.

# %% tags=["timing"]
runs = {gamma: loops.Loop(pair, NEW_TOKENS, fast.with_kernels(Options(gamma)), True) for gamma in (0, 2, 4)} | {
    8: longest
}
for run in runs.values():
    run.lap(prompts[:1])  # compiles
laps = [[{gamma: run.lap([prompt]).seconds for gamma, run in runs.items()} for _ in range(4)] for prompt in prompts]
fastest = {gamma: sum(min(lap[gamma] for lap in of_prompt) for of_prompt in laps) for gamma in runs}
measured = {gamma: fastest[0] / fastest[gamma] for gamma in (2, 4, 8)}  # the same number of tokens
print(" ".join(f"γ = {gamma}: {ratio:.2f}" for gamma, ratio in measured.items()))

# %% tags=["timing"]
figures.lines(
    {"predicted": prediction, "measured": measured}, "draft length γ", "speed-up", best="predicted", reference=1,
    title=machine.device_name(),
)  # fmt: skip

# %% [markdown]
# *Speed-up over γ: circles, dashed, from the stages' times; squares, solid, whole generations; dotted, no gain. The best γ is
# written at its point.*
#
# Both are of one machine at one time. Where other programs run, a long lap is disturbed more than a short one, and then the
# measured points lie too high, for the autoregressive laps are the longest.
#
# Where the curve turns depends on the machine. With a drafter as cheap as this one, it may be at the right end of the picture
# or beyond. Past the best γ, each further draft costs its full time and is accepted ever more rarely.
#
# ## Large models, and batches
#
# In a batch every row drafts and verifies its own tokens, but all rows share one reading of the weights. So the arithmetic that
# was idle at batch 1 is used up, and the tokens of a round are no longer free. With α = 0.8, on the accelerator:
#
# **Predict:** which of the three models gains *more* in a batch of 64 than alone?

# %%
drafts = range(1, LONGEST + 1)
tables = {
    name: {
        f"batch {batch}": {g: exercises.gain(name, batch, g, 0.8, accelerator) for g in drafts}
        for batch in (1, 64, 512)
    }
    for name in released
}
for name, table in tables.items():
    print(f"{name:8} with γ = 4:", ", ".join(f"{batch}: {points[4]:.2f}" for batch, points in table.items()))
figures.small_multiples(tables, "draft length γ", "speed-up", ticks=(1, 4, 8))

# %% [markdown]
# *A panel for each model, speed-up over γ, a line with its own marker for each batch size; dotted, no gain.*
#
# The dense models lose with the batch, and their best γ moves to the left; 31B loses less, because every row reads its own keys
# and values, which keeps memory busy. The mixture of experts gains little alone, because a longer pass reads more experts; in a
# large batch all experts are read anyway. These are limits, not measurements: they leave out all that an implementation adds.
#
# ## What you saw
#
# - Speed-up = tokens per round × time of a step / (draft + verify + accept).
# - One α for all places promises too much for long drafts.
# - A pass over a few tokens costs little more than a step as long as reading the weights takes longer than the arithmetic.
# - The best γ is the last at which one more draft yields more than it costs.
# - Batches use up the idle arithmetic; experts are an exception.

# %%
assert yields[8] < from_alpha[8] and all(yields[g] > yields[g - 1] for g in drafts)
assert seconds["pass over 5"] < 5 * seconds["step"], "five tokens at once, against five steps"
assert 0.4 < prediction[4] / measured[4] < 2.5, "a busy machine changes its speed between the two"
assert tables["31B"]["batch 512"][8] < tables["31B"]["batch 1"][8]
print("all as claimed")

# %% [markdown]
# ## Exercises
#
# **8.1 (predict)** A draft step costs 0.1 steps of the target, and a pass over five tokens 1.5 steps; γ = 4, α = 0.7. A drafter
# of twice the size costs twice as much and reaches α = 0.8. What is the speed-up with each, to two decimals? Does the larger
# one pay?
#
# **8.2 (change the code)** Write `best_draft_length(accepted, step, draft_step, passes)`: the γ with the highest speed-up.
# `accepted` is $[a_1, a_2, …]$, and `passes[n]` the seconds of a pass over n tokens, for n from 1 to `len(accepted) + 1`.
# Acceptance costs nothing.
#
# **8.3 (explain)** Why does a large batch gain less? Then find the smallest power of two at which E2B with γ = 8 and α = 0.8 is
# slower than without speculation, on the accelerator: `exercises.gain("E2B", batch, 8, 0.8, accelerator)`.


# %%
def best_draft_length(accepted, step, draft_step, passes):
    return 4


verdicts = [exercises.check_1(None, None), exercises.check_2(best_draft_length), exercises.check_3(None)]

# %% [markdown]
# ## What to read next
#
# [decoding/bench/cost.py](../decoding/bench/cost.py) and [stages.py](../decoding/bench/stages.py) are what this page ran, and
# `gemma4-mtp bench` runs it for your own pair. [speed.md](reference/speed.md) has the figures of other machines.
# [09](09_train_a_drafter.ipynb) moves the other factor, acceptance.
