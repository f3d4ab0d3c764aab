"""`generation_config.json`: the sampling settings that a checkpoint's authors recommend."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoding.sampling import Sampling
from gemma4.checkpoints.directories import check_file, parsed
from gemma4.checkpoints.hub import local_directory

FILE = "generation_config.json"

# Fields that change the text in transformers 5.22.2, and the values at which they change nothing.
NOT_APPLIED = {
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, []),
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "num_beams": (None, 1),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
}
log = logging.getLogger(__name__)


def load_sampling(directory: str | os.PathLike) -> Sampling:
    """The settings in a checkpoint's `generation_config.json`: greedy unless it has `do_sample: true`.

    Temperature, top-k, top-p and suppressed tokens are read here (a target's end tokens: `gemma4.load`).  Fields
    of `NOT_APPLIED` that are set are named in one warning of the log.
    Errors: CheckpointError for a file that cannot be read, and for a value out of range.
    """
    file = local_directory(directory).expanduser() / FILE
    if not os.path.lexists(file):
        return Sampling()
    check_file(file, "")
    return parsed(file, lambda fields: _sampling(fields, file))


def _sampling(fields: Mapping[str, Any], file: Path) -> Sampling:
    if ignored := [name for name, neutral in NOT_APPLIED.items() if fields.get(name) not in neutral]:
        log.warning("%s: %s %s not applied", file, ", ".join(ignored), "is" if len(ignored) == 1 else "are")
    suppress_tokens = fields.get("suppress_tokens") or ()
    # The defaults of transformers 5.22.2, `GenerationConfig`.
    if not fields.get("do_sample", False):
        return Sampling(suppress_tokens=suppress_tokens)
    given = {name: fields[name] for name in ("temperature", "top_k", "top_p") if fields.get(name) is not None}
    return Sampling(**{"temperature": 1.0, "top_k": 50, **given}, suppress_tokens=suppress_tokens)
