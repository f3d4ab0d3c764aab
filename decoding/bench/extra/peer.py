"""transformers 5.22.2 on the same weights, prompts and threads, alternately with ours.  Needs the extra `parity`."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import drafter
import gemma4
from decoding.bench.loops import quartiles
from decoding.bench.machine import num_cores
from decoding.bench.subject import Subject
from decoding.generation import generate, generate_autoregressive


class Missing(ValueError):
    """The peer is not installed."""


class Transformers:
    """transformers' own `generate`, autoregressive or assisted, batch 1, greedy."""

    def __init__(self, subject: Subject):
        """Errors: Missing without torch and transformers."""
        try:
            import torch
            import transformers
        except ImportError as error:
            raise Missing(
                f"--against transformers needs {error.name}, which is not installed: pip install 'gemma4-mtp[parity]'"
            ) from error
        self._torch = torch
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(num_cores())
        self.name = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        dtype = getattr(torch, jnp.dtype(subject.target.embed_tokens.weight.dtype).name)
        with tempfile.TemporaryDirectory() as scratch:
            gemma4.export_hf(subject.target, Path(scratch) / "target")
            drafter.export_hf(subject.draft_model, Path(scratch) / "drafter")
            settings = {"dtype": dtype, "local_files_only": True}
            target, assistant = transformers.Gemma4ForCausalLM, transformers.Gemma4AssistantForCausalLM
            self._target: Any = target.from_pretrained(Path(scratch) / "target", **settings)
            self._assistant: Any = assistant.from_pretrained(Path(scratch) / "drafter", **settings)
        if torch.cuda.is_available():
            for model in (self._target, self._assistant):
                model.cuda()

    def lap(self, prompt: list[int], new_tokens: int, draft_length: int) -> tuple[float, np.ndarray]:
        """Seconds, prefill included, and the new tokens.  draft_length 0: without the assistant."""
        torch, assisted = self._torch, {}
        if draft_length:
            self._assistant.generation_config.num_assistant_tokens = draft_length
            self._assistant.generation_config.num_assistant_tokens_schedule = "constant"
            assisted = {"assistant_model": self._assistant}
        tokens = torch.tensor([prompt], device=self._target.device)
        began = time.perf_counter()
        out = self._target.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **assisted,
        )
        text = out[0, len(prompt) :].cpu().numpy()
        return time.perf_counter() - began, text


def compare(
    subject: Subject,
    peer: Transformers,
    prompts: list[list[int]],
    new_tokens: int,
    draft_length: int,
    runs: int,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Both engines alternately on each prompt, whole generations, greedy, batch 1: tokens per second, and ratios in pairs.

    With random weights the assisted loops say little: neither engine accepts a draft.
    """
    common: dict[str, Any] = {"max_new_tokens": new_tokens, "loop": "on_device"}
    ours = {
        0: lambda prompt: generate_autoregressive(subject.target, prompt, **common),
        draft_length: lambda prompt: generate(
            subject.target, subject.draft_model, prompt, draft_length=draft_length, **common
        ),
    }
    rates = {(gamma, who): [] for gamma in ours for who in ("ours", "theirs")}
    texts = equal = 0
    for run in range(runs + 1):  # the first one compiles, and does not count
        progress(f"run {run} of {runs}" if run else "compiling")
        for prompt in prompts:
            for gamma in ours:
                began = time.perf_counter()
                (text,) = ours[gamma](prompt).tokens
                our_seconds = time.perf_counter() - began
                their_seconds, their_text = peer.lap(prompt, new_tokens, gamma)
                if run:
                    rates[gamma, "ours"].append(new_tokens / our_seconds)
                    rates[gamma, "theirs"].append(new_tokens / their_seconds)
                else:
                    texts, equal = texts + 1, equal + np.array_equal(text, their_text)
    return {
        "peer": peer.name,
        "texts": texts,
        "equal_texts": equal,
        "autoregressive": _pairs(rates[0, "ours"], rates[0, "theirs"]),
        "speculative": _pairs(rates[draft_length, "ours"], rates[draft_length, "theirs"]),
    }


def _pairs(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "tokens_per_second": statistics.median(ours),
        "their_tokens_per_second": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
        "runs": len(ratios),
    }
