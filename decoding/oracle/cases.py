"""The cases of the oracle: a tiny pair of each layout, and the inputs of every stage, all drawn from a seed.

Inputs are drawn and never computed by the code under test, so a mistake in one stage cannot pass into the inputs of the next.
They are chosen to show mistakes:

- lengths around the sliding window w: w - 1, w, w + 1 and 2w + 3 side by side, so that rows of a batch differ;
- the drafter's K/V continue past each row's length with large values, which nothing may read;
- acceptance counts cover 0 to gamma, and differ within a batch;
- every round of the rollback stage keeps another number of tokens in each row, until rings have wrapped several times.
"""

import dataclasses
import functools
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import drafter
import gemma4
from decoding.oracle.script import BY_ITSELF
from decoding.oracle.tiny import TINY, TINY_DRAFTERS, VOCAB, WINDOW, random_drafter, random_target, restless
from decoding.sampling import Sampling
from drafter import Drafter
from drafter.config import CONVENTIONS, TRANSFORMERS
from gemma4 import Gemma4
from gemma4.checkpoints.safetensors import WEIGHTS

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)
ROWS, LONGEST = len(LENGTHS), max(LENGTHS)
GAMMA = 4  # drafts a round
CHUNK = GAMMA + 1  # tokens a forward
ROUNDS = 6  # of the rollback stage: rows advance by 2 to 26 tokens, past three windows
MAX_NEW_TOKENS = 24  # of the round stage
EOS = 7  # of the emission stage
RESTLESS = 4.0  # the factor by which layers are stronger: enough for texts that depend on the whole cache
POISON = 40.0  # the value of K/V that nothing may read: large, so that reading one of them shows
FAR = (0, 1, 777, 10_000, 100_003, 131_071)  # positions for RoPE, up to the end of a context

SETTINGS: dict[str, Sampling] = {
    "plain": Sampling(1.0),
    "temperature_0.7": Sampling(0.7),
    "top_k_5": Sampling(1.0, top_k=5),
    "top_p_0.8": Sampling(1.0, top_p=0.8),
    "all_three": Sampling(1.3, top_k=12, top_p=0.9),
    "greedy": Sampling(),
}

# The greedy text of each target after the prompts of the round stage.  In a file, so that a wrong implementation cannot change
# its own script; `python -m decoding.oracle.write_texts` writes it.
TEXTS = Path(__file__).parent / "texts.json"

Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny target and its drafter, and the inputs of every stage."""

    name: str
    layout: str  # E2B, E4B, 12B, 26B-A4B or 31B
    convention: str  # of the drafter's position and window
    seed: int

    def target(self) -> Gemma4:
        return restless(random_target(TINY[self.layout], self.seed), RESTLESS)

    def draft_model(self) -> Drafter:
        config = dataclasses.replace(TINY_DRAFTERS[self.layout], convention=self.convention)
        return random_drafter(config, self.seed)

    def write(self, directory: Path) -> None:
        """Checkpoints in Hugging Face layout: target, drafter and, where layers share K/V, target_with_unused_kv."""
        target = self.target()
        gemma4.export_hf(target, directory / "target")
        drafter.export_hf(self.draft_model(), directory / "drafter")
        if target.config.num_kv_shared_layers:
            write_with_unused_kv(target, directory / "target_with_unused_kv", self.seed)

    def rng(self, stage: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stage.encode()])

    def inputs(self) -> Inputs:
        """Every stage's inputs by name (see the functions below)."""
        rng = self.rng
        parts = {
            "rope": rope_inputs(),
            "forward": {"tokens": tokens(rng("forward"), ROWS, LONGEST), "lengths": np.array(LENGTHS, np.int32)},
            "draft": draft_inputs(rng("draft"), self.layout),
            "verify": {"token": tokens(rng("verify"), ROWS), "drafts": tokens(rng("drafts"), ROWS, GAMMA)},
            "law": {"logits": rng("law").normal(0, 2, (6, VOCAB)).astype(np.float32)},
            "accept": accept_inputs(rng("accept"), rows=16),
            "accept_block": accept_inputs(rng("accept_block"), rows=128),
            "emit": emit_inputs(rng("emit")),
            "rollback": rollback_inputs(rng("rollback")),
            "rounds": round_inputs(rng("rounds"), self.layout),
        }
        return {f"{stage}/{name}": value for stage, inputs in parts.items() for name, value in inputs.items()}

    def inputs_of(self, stages: Collection[str]) -> Inputs:
        """The inputs that these stages read."""
        read = {name for stage in stages for name in (stage, *ALSO_GIVEN.get(stage, ()))}
        return {name: value for name, value in self.inputs().items() if name.split("/")[0] in read}


# Stages that also read another stage's inputs.
ALSO_GIVEN = {
    "load": ("forward", "draft"),
    **dict.fromkeys(("prefill", "chunked", "stepwise", "share", "verify", "rollback"), ("forward",)),
}

CASES: dict[str, Case] = {}
for _seed, _layout in enumerate(TINY):
    for _convention in CONVENTIONS:
        _name = _layout if _convention == TRANSFORMERS else f"{_layout}.{_convention}"
        CASES[_name] = Case(_name, _layout, _convention, seed=101 + _seed)


def tokens(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, VOCAB, shape).astype(np.int32)


def rope_inputs() -> Inputs:
    return {"positions": np.array(FAR, np.int32)}


def draft_inputs(rng: np.random.Generator, layout: str) -> Inputs:
    """Rows of w - 1, w, w + 1 and 2w + 3 committed tokens, and the token and the hidden state of each step."""
    config = TINY[layout]
    positions, lengths = LONGEST + GAMMA, np.array(LENGTHS, np.int32)
    out = {
        "token": tokens(rng, ROWS, GAMMA),
        "hidden": np.float32(rng.normal(0, 1, (ROWS, GAMMA, config.hidden_size))),
        "lengths": lengths,
    }
    for kind, donor in config.donors.items():
        shape = (ROWS, config.kv_heads(donor), positions, config.layer_head_dim(donor))
        past = np.arange(positions) >= lengths[:, None]
        for part in ("key", "value"):
            values = np.where(past[:, None, :, None], POISON, rng.normal(0, 1, shape))
            out[f"{kind}.{part}"] = np.float32(values)
    return out


def accept_inputs(rng: np.random.Generator, rows: int) -> Inputs:
    """Sampled: distributions close to each other.  Greedy: row % (gamma + 1) right drafts, then a wrong one."""
    vocabulary = 8

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    logits = rng.normal(0, 1.5, (rows, GAMMA + 1, vocabulary))
    draft_logits = logits[:, :-1] + rng.normal(0, 1.0, (rows, GAMMA, vocabulary))
    draft_probs = softmax(draft_logits).astype(np.float32)
    drafts = (rng.random((rows, GAMMA, 1)) > np.cumsum(draft_probs, axis=-1)[..., :-1]).sum(axis=-1)
    right = np.arange(GAMMA) < (np.arange(rows) % (GAMMA + 1))[:, None]
    best = logits[:, :-1].argmax(axis=-1)
    return {
        "logits": logits.astype(np.float32),
        "target_probs": softmax(logits).astype(np.float32),
        "draft_probs": draft_probs,
        "drafts": drafts.astype(np.int32),
        "uniforms": (rng.integers(0, 2**23, (rows, GAMMA + 1)) / 2**23).astype(np.float32),
        "greedy_drafts": np.where(right, best, (best + 1) % vocabulary).astype(np.int32),
    }


def emit_inputs(rng: np.random.Generator) -> Inputs:
    """An EOS at every index of a run, past its end, none, two; budgets that end inside a run, at its end, at an EOS."""
    runs = np.where(np.eye(GAMMA + 1, dtype=bool), EOS, 20 + rng.integers(0, 20, (GAMMA + 1, GAMMA + 1)))
    plain = 20 + rng.integers(0, 20, (4, GAMMA + 1))
    twice = np.array([[21, EOS, 22, EOS, 23], [21, 22, EOS, 23, 24], [EOS, EOS, EOS, EOS, EOS]])
    all_tokens = np.concatenate([runs, plain, twice])
    num_tokens = np.array([5, 5, 5, 5, 5, 5, 3, 5, 1, 5, 2, 5])
    room = np.array([50, 50, 50, 50, 50, 50, 50, 4, 1, 2, 50, 5])
    return {
        "tokens": all_tokens.astype(np.int32),
        "num_tokens": num_tokens.astype(np.int32),
        "room": room.astype(np.int32),
    }


def rollback_inputs(rng: np.random.Generator) -> Inputs:
    """Blocks of [token, drafts], how many tokens of each block are kept, and a last block.  Counts differ between rows."""
    kept = np.stack([rng.permutation(GAMMA + 1)[:ROWS] + 1 for _ in range(ROUNDS)])
    kept[0] = [1, 3, 5, 2]  # in one batch: no draft accepted, some, all
    return {"blocks": tokens(rng, ROUNDS + 1, ROWS, GAMMA + 1), "kept": kept.astype(np.int32)}


def round_inputs(rng: np.random.Generator, layout: str) -> Inputs:
    """Two prompts, a script of drafts with a few wrong ones, and an EOS inside a run of right ones.

    The rows accept different numbers of drafts from the first round on.  -1 in the script keeps the drafter's own draft.
    """
    prompts, lengths = round_prompts(rng)
    texts = np.array(greedy_texts()[layout])
    wrong = np.zeros(texts.shape, bool)
    for row in range(2):
        wrong[row, np.cumsum([1 + row, 3, 5, 2, 4, 1])] = True
    script = np.full((2, 64), BY_ITSELF, np.int32)
    for row, proposed in enumerate(np.where(wrong, (texts + 1) % VOCAB, texts)):
        script[row, lengths[row] : lengths[row] + len(proposed)] = proposed
    return {"prompts": prompts, "lengths": lengths, "script": script, "eos": end_of(texts, wrong[0])}


def round_prompts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return tokens(rng, 2, 12), np.array([5, 12], np.int32)


def end_of(texts: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """An EOS for the first text: its first occurrence there is an accepted draft with accepted drafts after it.

    Preferably a token that the second text lacks, so that the second text ends with its budget.
    """
    first, second = texts
    indices = [
        i
        for i in range(6, MAX_NEW_TOKENS - 3)
        if first[i] not in first[:i] and not wrong[i : i + 2].any() and first[i] not in second[:6]
    ]
    best = min(indices, key=lambda i: (first[i] in second, i))
    return first[best : best + 1].astype(np.int32)


@functools.cache
def greedy_texts() -> dict[str, list[list[int]]]:
    return json.loads(TEXTS.read_text())


def write_with_unused_kv(target: Gemma4, directory: Path, seed: int) -> None:
    """The same target with K/V weights also in the layers that share K/V.  Released files have them; no layer uses them."""
    config, rng = target.config, np.random.default_rng(seed)
    gemma4.export_hf(target, directory)
    tensors = load_file(directory / WEIGHTS)
    for layer in range(config.first_kv_shared_layer, config.num_hidden_layers):
        head_dim = config.layer_head_dim(layer)
        shape = (config.kv_heads(layer) * head_dim, config.hidden_size)
        at = f"model.layers.{layer}.self_attn"
        tensors |= {f"{at}.{part}.weight": rng.normal(0, 1, shape).astype(np.float32) for part in ("k_proj", "v_proj")}
        tensors[f"{at}.k_norm.weight"] = rng.uniform(0.5, 1.5, head_dim).astype(np.float32)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
