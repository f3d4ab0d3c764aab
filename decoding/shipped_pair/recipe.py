"""Make the shipped pair from nothing:  python -m decoding.shipped_pair.recipe --out DIR   (about two hours on two cores)

Stages: tokenizer, target, text sampled from the target, drafter (one draft step, then four), export.  Every stage saves its
results under DIR, so the same command resumes after an interruption.  DIR/pair is replaced only if it is as the recipe left
it.  `measure.py` measures the result.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

import drafter
import gemma4
from decoding.generation import generate_autoregressive
from decoding.sampling import Sampling
from decoding.shipped_pair import corpus
from drafter import Drafter
from drafter.config import Config as DrafterConfig
from drafter.config import config_for
from drafter.training import draft_loss, init_drafter, teach, trainable
from gemma4 import Config, Gemma4
from gemma4.checkpoints.directories import CheckpointError
from gemma4.checkpoints.params import named_params, with_params
from gemma4.config import interleave
from gemma4.fast.linear import for_training
from gemma4.training import Schedule, fit, held_out_nats, next_token_loss, windows

EXPORTED = "exported.txt"  # under DIR: the digest of each pair that `export` has written to DIR/pair, one a line


class Recipe(NamedTuple):
    """Everything that determines the pair, except the text."""

    target: Config
    drafter: DrafterConfig
    target_steps: int = 600
    target_batch: int = 4096  # tokens in one step
    lengthen: float = 0.7  # share of the steps after which windows are twice as long
    drafter_steps: tuple[int, int] = (250, 600)  # with one draft step, with `unroll` of them
    drafter_batch: int = 2048
    unroll: int = 4
    window: int = 256  # tokens of text in one training window
    sampled_rows: int = 512  # windows of text by the target itself, greedy and at temperature 1 each
    seed: int = 0


def king_james_recipe() -> Recipe:
    """E2B's layout in small: three sliding layers, then a full one; the second half shares K/V and has MLPs of twice the width;
    per-layer embeddings.
    """
    target = Config(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=1024,
        layer_types=interleave(3, 8),
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        global_head_dim=128,
        num_kv_shared_layers=4,
        use_double_wide_mlp=True,
        sliding_window=64,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=2048,
        max_position_embeddings=2048,
        bos_token_id=corpus.BOS,
        pad_token_id=corpus.PAD,
        eos_token_ids=(corpus.EOS,),
    )
    return Recipe(target, config_for(target, width=128, mlp=256, heads=target.num_attention_heads, clusters=(64, 16)))


def training_stream(tokenizer: Tokenizer, text: corpus.Corpus) -> np.ndarray:
    """All training chapters, without the EOS of the last one: int32 [tokens].

    The length of the stream decides which windows a seed draws, and the shipped pair was trained on those of this length.
    """
    return np.concatenate(corpus.encode_chapters(tokenizer, text.train))[:-1]


def train_target(recipe: Recipe, tokenizer: Tokenizer, text: corpus.Corpus, out: Path) -> Gemma4:
    stream = training_stream(tokenizer, text)
    blank = Gemma4(recipe.target, rngs=nnx.Rngs(recipe.seed))
    trained = for_training(blank)  # the same weights, with faster gradients; what is returned is a plain model
    short, long = (
        windows(stream, length, recipe.target_batch // length, corpus.BOS, recipe.seed)
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
                with_params(blank, params), tokenizer, text.held_out, 2 * recipe.window
            )
        },
    )
    return with_params(blank, params)


def bits_per_byte(target: Gemma4, tokenizer: Tokenizer, chapters: list[str], window: int) -> float:
    """What whole chapters cost, EOS included, in bits per UTF-8 byte; read in separate windows of `window` tokens."""
    nats = held_out_nats(target, corpus.encode_chapters(tokenizer, chapters), window, corpus.BOS)
    return round(float(nats / np.log(2) / sum(len(chapter.encode()) for chapter in chapters)), 4)


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
            raise ValueError(f"{path}: damaged ({error}); remove it, and the recipe samples the text again") from error
    prompt, batch, rows = 32, min(64, recipe.sampled_rows), []
    prompts_at = windows(stream, prompt, batch, corpus.BOS, recipe.seed + 1)
    for step in range(recipe.sampled_rows // batch):
        prompts = prompts_at(step)
        continued = generate_autoregressive(
            target,
            prompts.tolist(),
            max_new_tokens=recipe.window - prompt,
            sampling=Sampling(temperature),
            key=jax.random.key(step),
        )
        rows.append(np.concatenate([prompts, np.stack(continued.tokens)], axis=1))
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        np.save(file, np.concatenate(rows))
    scratch.replace(path)  # a file of this name is always complete
    return np.concatenate(rows)


def train_drafter(recipe: Recipe, target: Gemma4, stream: np.ndarray, out: Path) -> Drafter:
    """Half of every batch comes from the corpus, a quarter is the target's greedy text, a quarter its text at temperature 1."""
    rows = recipe.drafter_batch // recipe.window
    greedy, sampled = (sample_text(recipe, target, stream, temperature, out) for temperature in (0.0, 1.0))
    corpus_rows = windows(stream, recipe.window, rows - 2 * (rows // 4), corpus.BOS, recipe.seed + 2)

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
        )
    return with_params(blank, params)


def export(target: Gemma4, draft_model: Drafter, tokenizer: Tokenizer, text: corpus.Corpus, out: Path) -> None:
    """Write DIR/pair, the pair that ships.  An older one is replaced once the new one is complete.

    Errors: as `check_replaceable`.
    """
    pair = out / "pair"
    with tempfile.TemporaryDirectory(prefix=".pair.", dir=out) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        write_pair(target, draft_model, tokenizer, text, out, new)
        check_replaceable(out)  # once more: training takes hours
        with (out / EXPORTED).open("a") as lines:  # before the rename: a pair without its line could not be replaced
            lines.write(digest(new) + "\n")
        if pair.exists():
            pair.rename(old)
        new.rename(pair)


def write_pair(
    target: Gemma4, draft_model: Drafter, tokenizer: Tokenizer, text: corpus.Corpus, out: Path, pair: Path
) -> None:
    """bfloat16 weights in the Hugging Face layout, the tokenizer, the held-out chapters, and the training log of all stages."""
    gemma4.export_hf(target, pair / "target", dtype=jnp.bfloat16)
    drafter.export_hf(draft_model, pair / "drafter", dtype=jnp.bfloat16)
    tokenizer.save(str(pair / "target" / "tokenizer.json"))
    (pair / "held_out.json").write_text(json.dumps(text.held_out, indent=0), encoding="utf-8")
    logs = [out / name / "log.jsonl" for name in ("target", "drafter-1", "drafter")]
    (pair / "training_log.jsonl").write_text("".join(log.read_text() for log in logs))


def check_replaceable(out: Path) -> None:
    """Errors: CheckpointError unless DIR/pair is absent, empty, or byte for byte what `export` wrote there."""
    pair, exported = out / "pair", out / EXPORTED
    if not os.path.lexists(pair) or (pair.is_dir() and not any(pair.iterdir())):
        return
    if not (pair.is_dir() and exported.exists() and digest(pair) in exported.read_text().split()):
        raise CheckpointError(
            f"{pair}: is not as this recipe left it, and would be replaced; move it elsewhere, or give another --out"
        )


def digest(directory: Path) -> str:
    """SHA-256 of a directory: the names of everything in it, and the contents of its files."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        total.update(os.fsencode(path.relative_to(directory)) + b"\0")
        if path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def smoke_recipe() -> Recipe:
    """The same stages on a model of a few thousand weights: seconds of training, for the tests."""
    full = king_james_recipe()
    target = dataclasses.replace(
        full.target,
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=32,
        intermediate_size=64,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=8,
        sliding_window=16,
    )
    small = config_for(target, width=16, mlp=32, heads=target.num_attention_heads, clusters=(32, 8))
    return full._replace(
        target=target, drafter=small, target_steps=60, target_batch=512, drafter_steps=(20, 20), drafter_batch=512,
        window=64, sampled_rows=8,
    )  # fmt: skip


def run(recipe: Recipe, out: Path, chapters: int | None = None) -> None:
    """Run all stages.

    Errors: as `check_replaceable`, before the first stage; as `fit`; ValueError if a file under DIR is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_replaceable(out)
    text = corpus.king_james()
    text = corpus.Corpus(text.train[:chapters], text.held_out[:chapters])
    tokenizer = corpus.train_tokenizer(text.train, recipe.target.vocab_size)
    target = train_target(recipe, tokenizer, text, out)
    stream = training_stream(tokenizer, text)
    draft_model = train_drafter(recipe, target, stream, out)
    export(target, draft_model, tokenizer, text, out)
    print(
        f"finished: {out / 'pair'} holds the pair; measure it with  python -m decoding.shipped_pair.measure {out / 'pair'}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m decoding.shipped_pair.recipe",
        description="Make the shipped pair from nothing, in about two hours on two cores.  The same command resumes.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and the finished pair")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a few chapters, in about a minute")
    args = parser.parse_args(arguments)
    try:
        if args.smoke:
            run(smoke_recipe(), args.out, chapters=20)
        else:
            run(king_james_recipe(), args.out)
    except (ValueError, FloatingPointError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
