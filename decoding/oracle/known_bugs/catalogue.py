"""The classes of the catalogue of real bugs, and the bugs that have no mutant, with the reason.

The catalogue collects public reports (issues, fixes, source) about Gemma 4, its drafter and speculative decoding in other
engines, numbered B01 .. B97.  Classes are ranked by the number of engines in which they were reported.
"""

from typing import NamedTuple

CLASSES: dict[int, str] = {
    1: "which hidden state reaches the drafter",
    2: "K/V sharing inside the target",
    3: "the sliding ring after it wraps",
    4: "acceptance that changes the distribution",
    5: "proportional RoPE of full layers",
    6: "router, experts and their scales",
    7: "near-ties taken for bugs",
    8: "rejected or stale K/V visible",
    9: "the drafter reads the wrong layer",
    10: "EOS or length inside an accepted run",
    11: "norms, scalars, soft cap, K = V, attention scale",
    12: "quantised target, cache or drafter",
    13: "the drafter never runs",
    14: "window off by one",
    15: "per-layer inputs",
    16: "the drafter's input and position",
    17: "the clustered head",
    18: "the bidirectional mask of images",
    19: "batches of rows of different lengths",
    20: "state of logits processors",
    21: "embedding scale",
}

# Classes that do not show in text models, or not in the same way in every engine.
NOT_IN_TEXT = {
    7: "not a bug; `equivalent.py` has two forms of it",
    12: "the result depends on the engine's scales",
    20: "the reference has no logits processor with state",
}


class Inexpressible(NamedTuple):
    rank: int
    what: str
    seen_in: str
    why: str  # there is no mutant


CRASH = "an exception or a refusal: there is no tensor to compare"
IMAGES = "needs image tokens; the reference is text only"
NUMBERS = "needs quantised weights or caches; the result depends on the engine's scales"
PROCESSORS = "needs a logits processor with state; the reference has none"
UNUSED_KV = (
    "needs K/V weights that the reference does not load; `check --diagnose` recognises it by `load/unused_kv.logits`"
)
BUFFERS = "the result depends on the use of the buffer in between"

INEXPRESSIBLE: dict[str, Inexpressible] = {
    "B01": Inexpressible(2, "without a cache, shared layers compute K/V of their own", "transformers", UNUSED_KV),
    "B02": Inexpressible(2, "the same, for embeddings, perplexity and fine-tuning", "mlx-swift-lm, mlx-lm", UNUSED_KV),
    "B05": Inexpressible(2, "K/V weights of shared layers demanded, or refused", "mlx-vlm, mlx-lm, mlx-swift-lm", CRASH),
    "B21": Inexpressible(3, "a sliding cache cannot be cropped", "transformers", CRASH),
    "B23": Inexpressible(3, "speculation is turned off past the window", "mlx-swift-lm", "rounds are missing, tensors right"),
    "B27": Inexpressible(3, "a reused prefix is sliced from a wrapped ring", "mlx-vlm", "the reference keeps no prefixes"),
    "B33": Inexpressible(5, "width of the RoPE table taken from head_dim: silent fallback", "omlx", CRASH),
    "B37": Inexpressible(6, "approximate top-k of experts", "tunix", "another result at every run"),
    "B40": Inexpressible(9, "a drafter without owners of K/V is refused", "transformers 5.23.0", CRASH),
    "B41": Inexpressible(9, "targets without shared layers offer no K/V to a drafter", "transformers 5.23.0", CRASH),
    "B42": Inexpressible(9, "the drafter's layer types are looked up in an empty list", "vLLM", CRASH),
    "B49": Inexpressible(10, "accepted drafts after an EOS are counted", "vLLM", "a printed mean, no tensor"),
    "B54": Inexpressible(1, "hidden states sized by the drafter's width", "llama.cpp fork", "reads past the end of the state"),
    "B55": Inexpressible(1, "the hidden state is a pointer into a buffer in use", "ik_llama.cpp", BUFFERS),
    "B62": Inexpressible(12, "shared FP8 K/V read with scale 1", "vLLM", NUMBERS),
    "B63": Inexpressible(12, "the target's quantisation settings reach the drafter", "vLLM", NUMBERS),
    "B64": Inexpressible(12, "a quantised cache read as another dtype", "tpu-inference, llama.cpp", NUMBERS),
    "B65": Inexpressible(12, "router or per-layer table quantised", "Rapid-MLX, Ollama, mlx-vlm", NUMBERS),
    "B70": Inexpressible(15, "the per-layer table is read at image tokens", "coreai-models, MaxText", IMAGES),
    "B71": Inexpressible(15, "per-layer inputs are kept from an earlier call", "tpu-inference", BUFFERS),
    "B72": Inexpressible(15, "per-layer inputs not sliced with the chunk, image tokens embedded again", "mlx-vlm", IMAGES),
    "B73": Inexpressible(13, "the target's table is not shared with the drafter", "vLLM", CRASH),
    "B75": Inexpressible(13, "the drafter runs on the code path of another kind of model", "mlx-vlm, ModelOpt", CRASH),
    "B76": Inexpressible(13, "no prefix is reused while drafting", "omlx, mlx-vlm", "costs only time"),
    "B82": Inexpressible(19, "with padding on the left, pads are attended to", "mlx-vlm", "the reference pads on the right"),
    "B83": Inexpressible(19, "NaN from a row of pads only", "mlxcel", "the reference has no such row"),
    "B84": Inexpressible(19, "a list where an array is expected", "mlx-vlm", CRASH),
    "B85": Inexpressible(19, "batches are refused", "transformers", CRASH),
    "B86": Inexpressible(17, "packed entries of a quantised table are gathered", "mlx-swift-lm", NUMBERS),
    "B87": Inexpressible(17, "training moves the token ordering", "mlx-vlm", "shows in training only"),
    "B88": Inexpressible(17, "suppressed tokens are drafted", "vLLM", PROCESSORS),
    "B90": Inexpressible(18, "image tokens ignore the window", "google-deepmind/gemma, transformers", IMAGES),
    "B92": Inexpressible(20, "penalties count rejected drafts", "mlx-swift-lm", PROCESSORS),
    "B93": Inexpressible(20, "penalties do not count earlier drafts", "Ollama", PROCESSORS),
    "B94": Inexpressible(20, "a grammar advances over rejected drafts", "vLLM", PROCESSORS),
    "B95": Inexpressible(21, "image features scaled like embeddings", "mlx-vlm", IMAGES),
}  # fmt: skip
