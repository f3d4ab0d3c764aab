"""What determines a trained pair, except its text; in two sizes, and for a target that is there."""

import dataclasses
from typing import NamedTuple

from decoding.training.text import BOS, EOS, PAD, bos_of
from drafter.config import Config as DrafterConfig
from drafter.config import config_for
from gemma4 import Config
from gemma4.config import interleave


class Recipe(NamedTuple):
    """Sizes and lengths of all stages."""

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
    log_every: int = 100  # steps
    seed: int = 0

    def as_dict(self) -> dict:
        """Of plain numbers and strings."""
        fields = self._asdict()
        return fields | {name: dataclasses.asdict(fields[name]) for name in ("target", "drafter")}


def small() -> Recipe:
    """The shipped pair's, 13 M parameters: about two hours on two cores.

    E2B's layout in small: three sliding layers, then a full one; the second half shares K/V and has MLPs of twice the width;
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
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_ids=(EOS,),
    )
    return Recipe(target, config_for(target, width=128, mlp=256, heads=target.num_attention_heads, clusters=(64, 16)))


def tiny() -> Recipe:
    """A model of some ten thousand weights, in a minute; with few layers, because compilation takes nearly all the time.

    This layout needs that many: each type has a layer that owns K/V and one that shares them.
    """
    target = dataclasses.replace(
        small().target,
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=32,
        intermediate_size=64,
        layer_types=interleave(1, 4),
        num_kv_shared_layers=2,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=8,
        sliding_window=16,
    )
    draft_model = config_for(
        target, width=16, mlp=32, heads=target.num_attention_heads, clusters=(32, 8), layers=interleave(1, 2)
    )
    return Recipe(
        target, draft_model, target_steps=60, target_batch=512, drafter_steps=(20, 20), drafter_batch=512,
        unroll=2, window=64, sampled_rows=8, log_every=10,
    )  # fmt: skip


SIZES = {"tiny": tiny, "small": small}


def for_target(target: Config, *, width: int, clusters: tuple[int, int] | None, layers: int = 4) -> Recipe:
    """A drafter for a target that is there: `layers` layers, as released drafters have, the last of them a full one.

    clusters: how many, and how many of them are scored; None for a dense head.
    Errors:   ValueError for sizes that contradict each other or do not fit the target, and for a target without a BOS token.
    """
    heads, types = target.num_attention_heads, interleave(layers - 1, layers)
    draft_model = config_for(target, width=width, mlp=2 * width, heads=heads, clusters=clusters, layers=types)
    draft_model.check_fits(target)
    bos_of(target)
    return Recipe(target, draft_model)


def split_steps(steps: int) -> tuple[int, int]:
    """Steps of a drafter's training with one draft step, and with several."""
    return steps - round(0.7 * steps), round(0.7 * steps)
