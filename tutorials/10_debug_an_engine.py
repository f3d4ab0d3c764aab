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
# # Debug an engine that you did not write
#
# **The tokens are wrong. Which line is it?**
#
# *40 minutes. Read [02](02_one_token.ipynb) and [06](06_accept_and_reject.ipynb) before. It explains
# [decoding/oracle](../decoding/oracle).*
#
# Afterwards you can find the first wrong tensor of an engine in any language, read an error in units of its tolerance, tell a
# mistake from rounding, and test what greedy text never shows.
#
# The patient is [sick_engine.py](sick_engine.py): one pass of Gemma 4's layout 12B, and acceptance, in NumPy. Somebody wrote it
# from a description, and it has four mistakes. Do not search for them by reading; that works for 150 lines and for no real
# engine.

# %%
import inspect
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from sick_engine import SickEngine, softmax

from decoding.oracle import cases, diagnose, golden, law_check, live, table
from exercises import debug_an_engine as exercises
from figures import debug_an_engine as figures
from figures import style

style.use()

# %% [markdown]
# ## What is right?
#
# The **oracle** knows. It builds a tiny model with random weights, runs the reference, and writes inputs and *every named
# tensor* into files. On the command line this is `gemma4-mtp oracle dump --out golden`. We take one layout and three stages:
# `forward` (one pass), `law` (logits to distributions) and `accept`
# ([rejection sampling](glossary.md)). No weight is neutral there: a norm's weight of 1 would hide a forgotten norm.

# %%
folder = tempfile.TemporaryDirectory()
golden.dump(Path(folder.name) / "golden", ["12B"], ["forward", "law", "accept"])
oracle = golden.read_dump(Path(folder.name) / "golden")
expected = oracle.expected("12B")
print(len(oracle.entries), "named tensors, the first:", ", ".join(list(oracle.entries)[:3]))

engine = SickEngine(oracle.directory / "12B" / "target")
tokens = cases.CASES["12B"].inputs()["forward/tokens"]
theirs, right = engine.forward(tokens)["logits"].argmax(-1), expected["12B/forward/logits"].argmax(-1)
print(f"the engine's best next token is the expected one at {(theirs == right).sum()} of {right.size} positions")

# %% [markdown]
# That is the symptom, and it says nothing about the cause. All tensors after the first mistake are wrong, so the last one, the
# token, is the worst place to look.
#
# **Predict:** the pass has three layers: two with a [sliding window](glossary.md), then one with [full
# attention](glossary.md). If one of the four mistakes is in the first layer, which of the 36 tensors of the pass still agree?


# %%
def check(engine_class):
    """Every tensor that the engine offers against the oracle's: `gemma4-mtp oracle check golden --adapter …`."""
    return live.check_engine(oracle, lambda target, drafter, convention: engine_class(target))


def print_summary(report):
    beginnings = "first divergence in 12B", "agrees: ", "differs: "
    print("\n".join(line for line in table.lines(report) if line.startswith(beginnings)))


as_it_came = check(SickEngine)
print("\n".join(line for line in table.lines(as_it_came) if "differs" in line or "first" in line))

# %%
figures.grid({"as it came": as_it_came})

# %% [markdown]
# *The picture has a column for a named tensor, in the order of computation. A plain green box agrees; an orange, hatched box
# with a cross differs; the thick frame is the first that differs. The last three columns are acceptance.*
#
# One **unit** is the tolerance of that tensor: here 1e-4 of its largest value. Ten thousand units is no rounding. The frame
# says where to look: in layer 0, `query`, `key` and `value` agree and `attention`, which is computed from them, does not. So
# the mistake is in at most four operations: scores, mask, softmax, weighted sum.
#
# ## Mistake 1
#
# A tensor has more to tell than its worst error. Attention has an axis for the position.
#
# **Predict:** the window is 8. At which position would attention be wrong first if the scale of the scores were wrong? And if
# the window were wrong?

# %%
name = "12B/forward/layers.0.attention"
error = np.abs(as_it_came.theirs[name] - expected[name]).max(axis=(0, 2, 3))
print("positions that differ:", np.flatnonzero(error > 1e-4 * np.abs(expected[name]).max()))
print(inspect.getsource(SickEngine.mask))

# %% [markdown]
# Positions 0 to 7 are right. Position 0 sees one key, so no scale can show there, but position 1 sees two, and a wrong scale
# would. Position 8 is the first whose query has nine keys behind it and itself, of which it may see eight: the window counts
# the token itself. `<=` should be `<`. We repair the method in a subclass, so the patient stays as it is.


# %%
class Repaired1(SickEngine):
    def mask(self, layer, time):
        query, key = np.arange(time)[:, None], np.arange(time)
        seen = key <= query
        return seen & (query - key < self.config["sliding_window"]) if self.is_sliding(layer) else seen


once_repaired = check(Repaired1)
print_summary(once_repaired)

# %% [markdown]
# ## Mistake 2
#
# The frame has moved to the full-attention layer: its query and key agree, its **value** does not. You could read
# `raw_value` now. Or ask whether somebody had this bug before: the oracle has
# [121 known bugs](reference/known_bugs.md), most of them from public reports about real engines. `--diagnose` applies each to
# the reference, one at a time, and names those that compute *exactly these wrong tensors*.
#
# **Predict:** three mistakes are left. Can one known bug explain all tensors?

# %%
diagnosis = diagnose.diagnose_report(once_repaired)
print(diagnosis)

# %% [markdown]
# No single bug explains everything, so the diagnosis explains the *beginning*: with this bug in the reference, all but one
# tensor of the pass are as in our engine. In the layout 12B, full layers have no V projection
# ([k_eq_v](glossary.md)): values come from the raw key projection, before the key's norm and before
# [RoPE](glossary.md). A value must not rotate: a weighted sum of values that were rotated by different angles depends on where
# the tokens stand, not only on how far apart they are.


# %%
class Repaired2(Repaired1):
    def raw_value(self, layer, x, raw_key, key):
        return self.heads(layer, "v_proj", x) if self.is_sliding(layer) else raw_key


twice_repaired = check(Repaired2)
print_summary(twice_repaired)

# %% [markdown]
# ## Mistake 3, which greedy text does not show
#
# Of the pass, only the logits are left: the [hidden state](glossary.md) agrees, so the mistake is in the head.
#
# **Predict:** at how many of the 76 positions is the best token the expected one now?

# %%
logits, wanted = twice_repaired.theirs["12B/forward/logits"], expected["12B/forward/logits"]
print(f"the best token is the expected one at {(logits.argmax(-1) == wanted.argmax(-1)).sum()} of 76 positions")
p, p_wanted = softmax(logits), softmax(wanted)
apart = np.abs(p - p_wanted).sum(axis=-1) / 2
row, position = np.unravel_index(apart.argmax(), apart.shape)
print(f"at temperature 1 the distributions are up to {apart.max():.3f} apart in total variation")
best = np.argsort(-p_wanted[row, position])[:6]
figures.two_distributions(best, p_wanted[row, position, best], p[row, position, best])

# %% [markdown]
# *For the six likeliest tokens at the worst position: the expected probability on the left, this engine's, hatched, on the
# right.*
#
# Every greedy token is right, and a test that compares greedy text passes. The engine is still wrong: it misses the
# [soft cap](glossary.md), 30 · tanh(logits / 30), which keeps the order of the logits and lowers the high ones. Whoever samples
# gets other text.


# %%
class Repaired3(Repaired2):
    def logits(self, hidden):
        cap = self.config["final_logit_softcapping"]
        return cap * np.tanh(super().logits(hidden) / cap)


three_repaired = check(Repaired3)
print_summary(three_repaired)

# %% [markdown]
# ## Mistake 4, which no tensor proves
#
# The pass agrees. In acceptance, the *number* of accepted drafts agrees, and the token after them does not. That alone proves
# nothing: an engine may turn a random number into a token in its own way, so `next_token` is not even required.
#
# The proof is a distribution. The **enumeration** goes through every possible draft and every outcome of the random numbers,
# over a vocabulary of four, and adds up what a round emits. For an engine that is
# [lossless](glossary.md) this is the target's distribution.
#
# **Predict:** for greedy and for sampled targets, is the emitted text off?

# %%
for setting, distance in law_check.distances(Repaired3(oracle.directory / "12B" / "target")).items():
    verdict = "right" if distance < 1e-6 else f"off by a total variation of {distance:.3f}"
    print(f"{setting:24} {verdict}")
for mutant, _ in diagnose.diagnose_report(three_repaired).matches:
    print(f"the diagnosis matches {mutant.name}: {mutant.what}")

# %% [markdown]
# Wherever the target is sampled, the text is off, by as much as a quarter of all probability. With one mistake left, the
# diagnosis has a single answer and *matches* it. The next token after a rejection comes from the
# [residual distribution](glossary.md) (tutorial 06 proves why), and this engine draws it from p.


# %%
class Repaired4(Repaired3):
    def next_weights(self, p, q):
        return np.maximum(p - q, 0)


repaired = check(Repaired4)
names = ("as it came", "window", "value", "soft cap", "residual")
reports = (as_it_came, once_repaired, twice_repaired, three_repaired, repaired)
print("agrees" if repaired.agrees else "differs")
figures.grid(dict(zip(names, reports, strict=True)))

# %% [markdown]
# *The same grid with one row for each state of the engine, named by what was repaired last. The frame moves to the right
# with every repair, and is gone in the last row.*
#
# Note the order of work: never the tensor with the largest error, always the first.
#
# ## A difference that is no mistake
#
# Not every difference is a bug. Here are three engines: the repaired one, the same in float64, and the same with weights
# rounded to bfloat16, as most engines hold them.
#
# **Predict:** which of them stay below one unit?


# %%
class InFloat64(Repaired4):
    dtype = np.float64

    def __init__(self, target_dir):
        super().__init__(target_dir)
        self.weights = {name: value.astype(self.dtype).astype(np.float64) for name, value in self.weights.items()}


class InBfloat16(InFloat64):
    dtype = ml_dtypes.bfloat16


# %%
engines = {"repaired": Repaired4, "in float64": InFloat64, "bfloat16 weights": InBfloat16}
units = {name: figures.units_of(check(engine)) for name, engine in engines.items()}
for name, each in units.items():
    print(f"{name:17} {each['embedding']:8.1e} units in the embedding, {each['logits']:8.1e} in the logits")
figures.sizes({"mistake 2": figures.units_of(once_repaired)} | units)

# %% [markdown]
# *The largest error of each tensor of the pass, on a logarithmic scale; the dashed line is one unit.*
#
# A mistake is a **step**: from rounding to thousands of units between one tensor and the next. Coarse weights are **high from
# the beginning**, here by 21 units in the embedding, and the error rises slowly. float64 shows how exact the reference itself
# is. So compare in float32 first, whatever the engine uses in production, and only then ask how much bfloat16 costs.
#
# ## What you saw
#
# - All tensors after a mistake are wrong; the first one is near the line.
# - The axis along which a tensor goes wrong (here: the position) often names the cause.
# - Greedy text hides mistakes that keep the order of the logits, and all those of sampled acceptance.
# - A distribution is tested by a distribution: the enumeration has no noise.
# - Rounding is everywhere and grows slowly; a mistake is a step.

# %%
frames = [figures.first_frame(report) for report in reports]
print("the frame's column, repair by repair:", frames)
assert repaired.agrees and frames[:4] == sorted(frames[:4]) and frames[4] is None
assert (logits.argmax(-1) == wanted.argmax(-1)).all() and apart.max() > 0.01
assert max(units["repaired"].values()) < 1 < max(units["bfloat16 weights"].values())

# %% [markdown]
# ## Exercises
#
# Put your answers in place of `None`, `SickEngine` and `"abc"`.
#
# **10.1 (predict)** Three other mistakes, each alone in an otherwise right engine of this layout. At which tensor of the pass
# does each show first? Names as in the table of [the oracle's format](reference/oracle_format.md), such as `layers.1.mlp`.
#
# **10.2 (change the code)** Write a fifth mistake: a subclass of `Repaired4` whose best token stays the expected one at all 76
# positions, and which the oracle finds all the same. Not the soft cap.
#
# **10.3 (explain)** When may two engines differ and both be right? Three of these six keep the target's distribution. Say why
# for each, then give the three letters.
#
# - a: a draft is accepted if it equals the token that the target itself sampled; if not, that sample is emitted.
# - b: a draft is accepted if it equals the token that the target itself sampled; if not, a new sample is drawn.
# - c: scores are divided by the root of the head size, and queries multiplied by it before.
# - d: after a rejection the next token is drawn from softmax(max(p − q, 0)).
# - e: softmax over all tokens, then the k likeliest, then division by their sum.
# - f: at a temperature, a draft is accepted if it is the target's most likely token.

# %%
first_tensor = {"rope-turns-every-pair": None, "layer-scalar-dropped": None, "attention-not-normed-behind": None}
verdicts = [exercises.check_1(first_tensor), exercises.check_2(SickEngine), exercises.check_3("abc")]

# %% [markdown]
# ## What to read next
#
# [decoding/oracle/engine.py](../decoding/oracle/engine.py) is the interface that your own engine implements, any part of it;
# [oracle_format.md](reference/oracle_format.md) is for engines in other languages, and
# [known_bugs.md](reference/known_bugs.md) lists what went wrong elsewhere. From the folder of this page,
# `gemma4-mtp oracle check --adapter sick_engine:load --case 12B --diagnose` runs what you ran here.
