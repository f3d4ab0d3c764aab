"""Make the shipped pair from nothing:  python -m decoding.shipped_pair.recipe --out DIR   (about two hours on two cores)

The stages are those of `decoding/training`: tokenizer, target, text sampled from the target, drafter (one draft step, then
four), export.  Every stage saves its results under DIR, so the same command resumes after an interruption.  DIR/pair is
replaced only if it is as the recipe left it.  `measure.py` measures the result.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import drafter
import gemma4
from decoding.shipped_pair.corpus import king_james
from decoding.training.export import check_replaceable, export, training_log
from decoding.training.pair import begin, corpus_tokenizer, train_drafter, train_target, training_stream
from decoding.training.recipes import Recipe, small, tiny
from decoding.training.text import Corpus, encode
from drafter import Drafter
from gemma4 import Gemma4
from gemma4.progress import show


def write_pair(
    target: Gemma4, draft_model: Drafter, tokenizer: Tokenizer, corpus: Corpus, out: Path, pair: Path
) -> None:
    """bfloat16 weights in the Hugging Face layout, the tokenizer, the held-out chapters, and the training log of all stages."""
    gemma4.export_hf(target, pair / "target", dtype=jnp.bfloat16)
    drafter.export_hf(draft_model, pair / "drafter", dtype=jnp.bfloat16)
    tokenizer.save(str(pair / "target" / "tokenizer.json"))
    (pair / "held_out.json").write_text(json.dumps(corpus.held_out, indent=0), encoding="utf-8")
    (pair / "training_log.jsonl").write_text(training_log(out))


def run(recipe: Recipe, corpus: Corpus, out: Path) -> None:
    """Run all stages.

    Errors: as `check_replaceable` and `begin`, before the first stage; as `fit`; ValueError if a file under DIR is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_replaceable(out)
    begin(out, recipe.as_dict())
    tokenizer = corpus_tokenizer(corpus, recipe.target.vocab_size, out)
    target = train_target(recipe, tokenizer, corpus, out, report=print)
    stream, held_out = training_stream(recipe, tokenizer, corpus), np.concatenate(encode(tokenizer, corpus.held_out))
    draft_model = train_drafter(recipe, target, stream, out, held_out, report=print)
    export(lambda pair: write_pair(target, draft_model, tokenizer, corpus, out, pair), out)
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
    show()
    try:
        if args.smoke:
            run(tiny(), Corpus(*(chapters[:20] for chapters in king_james())), args.out)
        else:
            run(small(), king_james(), args.out)
    except (ValueError, FloatingPointError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
