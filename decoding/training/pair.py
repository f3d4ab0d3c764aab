"""The stages of training a pair: target, text sampled from the target, drafter (one draft step, then several).

Every stage saves its results in its own place under one directory, so the same call resumes after an interruption.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from decoding.generation import generate_autoregressive
from decoding.sampling import Sampling
from decoding.training.recipes import Recipe
from decoding.training.text import Corpus, bos_of, encode, eos_of, train_tokenizer
from drafter import Drafter
from drafter.training import draft_loss, expected_acceptance, init_drafter, teach, trainable
from gemma4 import Gemma4
from gemma4.checkpoints.params import named_params, with_params
from gemma4.fast.linear import for_training
from gemma4.progress import progress
from gemma4.training import Schedule, fit, held_out_nats, next_token_loss, windows

STAGES = ("target", "drafter-1", "drafter")  # folders with checkpoints and a log.jsonl
SETTINGS = "settings.json"
PROMPT = 32  # tokens of the corpus that the target continues
Report = Callable[[dict[str, Any]], None]


def begin(out: Path, settings: dict[str, Any]) -> None:
    """Note in DIR/settings.json what is trained there.  Errors: ValueError if DIR holds a training with other settings."""
    out.mkdir(parents=True, exist_ok=True)
    file, settings = out / SETTINGS, json.loads(json.dumps(settings))
    if not file.exists():
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        scratch.replace(file)
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error}); give another --out, or remove this one") from error
    if differing := sorted(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name)):
        raise ValueError(
            f"{out}: holds a training that was begun with another {', '.join(differing)}; give the same arguments to resume "
            "it, or another --out"
        )


def corpus_tokenizer(corpus: Corpus, vocab_size: int, out: Path) -> Tokenizer:
    """A tokenizer trained on the corpus; the next time it is read from DIR/tokenizer.json."""
    file = out / "tokenizer.json"
    if file.exists():
        return Tokenizer.from_file(str(file))
    tokenizer = train_tokenizer(corpus.train, vocab_size)
    scratch = file.with_suffix(".tmp")
    tokenizer.save(str(scratch))
    scratch.replace(file)
    return tokenizer


def training_stream(recipe: Recipe, tokenizer: Tokenizer, corpus: Corpus) -> np.ndarray:
    """All training documents, without the EOS of the last one: int32 [tokens].

    The length of the stream decides which windows a seed draws, and the shipped pair was trained on those of this length.
    """
    eos = eos_of(recipe.target)
    stream = np.concatenate(encode(tokenizer, corpus.train, eos))
    return stream if eos is None else stream[:-1]


def check_text(recipe: Recipe, stream: np.ndarray) -> None:
    """Errors: ValueError for a text shorter than the longest window, and for ids that the target does not have."""
    longest = recipe.window * 2
    if len(stream) < longest:
        raise ValueError(
            f"--text: {len(stream)} tokens are left for training, and a window has up to {longest}; give more text, or a "
            "smaller --window"
        )
    if stream.max() >= recipe.target.vocab_size:
        raise ValueError(
            f"--text: has the token {stream.max()}, which the target lacks (its vocabulary has {recipe.target.vocab_size})"
        )


def train_target(
    recipe: Recipe, tokenizer: Tokenizer, corpus: Corpus, out: Path, report: Report = lambda entry: None
) -> Gemma4:
    stream = training_stream(recipe, tokenizer, corpus)
    blank = Gemma4(recipe.target, rngs=nnx.Rngs(recipe.seed))
    trained = for_training(blank)  # the same weights, with faster gradients; what is returned is a plain model
    short, long = (
        windows(stream, length, recipe.target_batch // length, bos_of(recipe.target), recipe.seed)
        for length in (recipe.window, 2 * recipe.window)
    )
    params = fit(
        lambda params, batch: next_token_loss(with_params(trained, params), batch),
        named_params(blank),
        lambda step: jnp.asarray((short if step < recipe.lengthen * recipe.target_steps else long)(step)),
        Schedule(recipe.target_steps),
        out / "target",
        label="target",
        evaluate=lambda params: {
            "held_out_bits_per_byte": bits_per_byte(
                with_params(blank, params), tokenizer, corpus.held_out, 2 * recipe.window
            )
        },
        evaluate_every=recipe.log_every,
        report=report,
    )
    return with_params(blank, params)


def bits_per_byte(target: Gemma4, tokenizer: Tokenizer, documents: list[str], window: int) -> float:
    """What whole documents cost, EOS included, in bits per UTF-8 byte; read in separate windows of `window` tokens."""
    config = target.config
    nats = held_out_nats(target, encode(tokenizer, documents, eos_of(config)), window, bos_of(config))
    return round(float(nats / np.log(2) / sum(len(document.encode()) for document in documents)), 4)


def sample_text(recipe: Recipe, target: Gemma4, stream: np.ndarray, temperature: float, out: Path) -> np.ndarray:
    """Windows of text that the target continued from 32 tokens of the corpus: int32 [sampled_rows, window + 1].

    A drafter continues its target's text, not the corpus, and greedy text differs from sampled text.  The windows are saved in
    DIR/sampled_TEMPERATURE.npy and read from there the next time.  Errors: ValueError if that file is damaged.
    """
    path = out / f"sampled_{temperature:g}.npy"
    if path.exists():
        try:
            return np.load(path)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: damaged ({error}); remove it, and the text is sampled again") from error
    batch, rows = min(64, recipe.sampled_rows), []
    prompts_at = windows(stream, PROMPT, batch, bos_of(recipe.target), recipe.seed + 1)
    count = recipe.sampled_rows // batch
    with progress(f"text by the target, temperature {temperature:g}", count * batch, "windows") as advance:
        for step in range(count):
            prompts = prompts_at(step)
            continued = generate_autoregressive(
                target,
                prompts.tolist(),
                max_new_tokens=recipe.window - PROMPT,
                sampling=Sampling(temperature),
                key=jax.random.key(step),
            )
            rows.append(np.concatenate([prompts, np.stack(continued.tokens)], axis=1))
            advance(batch)
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        np.save(file, np.concatenate(rows))
    scratch.replace(path)  # a file of this name is always complete
    return np.concatenate(rows)


def train_drafter(
    recipe: Recipe,
    target: Gemma4,
    stream: np.ndarray,
    out: Path,
    held_out: np.ndarray | None = None,
    report: Report = lambda entry: None,
) -> Drafter:
    """Half of every batch comes from the corpus, a quarter is the target's greedy text, a quarter its text at temperature 1.

    held_out: a stream of ids; the log then has how often its drafts would be accepted at temperature 1.
    """
    rows = recipe.drafter_batch // recipe.window
    greedy, sampled = (sample_text(recipe, target, stream, temperature, out) for temperature in (0.0, 1.0))
    corpus_rows = windows(stream, recipe.window, rows - 2 * (rows // 4), bos_of(recipe.target), recipe.seed + 2)

    def batch_at(step: int) -> tuple[Gemma4, jax.Array]:
        rng = np.random.default_rng([recipe.seed + 3, step])
        own = [texts[rng.integers(0, len(texts), rows // 4)] for texts in (greedy, sampled)]
        return target, jnp.asarray(np.concatenate([corpus_rows(step), *own]))

    blank = init_drafter(recipe.drafter, target, recipe.seed)
    trained = for_training(blank)
    params = trainable(blank)
    one, many = recipe.drafter_steps
    for steps, unroll, decay, label in ((one, 1, 0.0, "drafter-1"), (many, recipe.unroll, 0.6, "drafter")):
        params = fit(
            lambda params, batch, unroll=unroll: draft_loss(with_params(trained, params), teach(*batch), unroll),
            params,
            batch_at,
            Schedule(steps, matrix_rate=6e-3, other_rate=4e-3, decay=decay, weight_decay=0.0),
            out / label,
            label=label,
            evaluate=_acceptance(recipe, target, blank, held_out, unroll),
            evaluate_every=recipe.log_every,
            report=report,
        )
    return with_params(blank, params)


def _acceptance(
    recipe: Recipe, target: Gemma4, blank: Drafter, held_out: np.ndarray | None, unroll: int
) -> Callable[[dict], dict[str, Any]] | None:
    """What `fit` logs of a drafter: of drafts 1, 2, ... on held-out text, the share that the target accepts."""
    if held_out is None or len(held_out) < recipe.window:
        return None
    rows = windows(
        held_out, recipe.window, max(1, recipe.drafter_batch // recipe.window), bos_of(recipe.target), recipe.seed
    )(0)

    @jax.jit
    def measure(target: Gemma4, params: dict) -> jax.Array:
        return expected_acceptance(with_params(blank, params), teach(target, jnp.asarray(rows)), unroll)

    def evaluate(params: dict) -> dict[str, Any]:
        return {"held_out_acceptance": [round(float(share), 4) for share in measure(target, params)]}

    return evaluate
