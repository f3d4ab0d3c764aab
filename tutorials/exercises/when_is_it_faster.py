"""The checks of `08_when_is_it_faster`, and the gain of a released model by its shapes alone."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from decoding.bench.cost import Times, speed_up, tokens_per_round
from decoding.bench.machine import Machine
from decoding.bench.work import draft_work, forward_work, least_seconds
from drafter import Drafter
from drafter import config as drafter_config
from exercises import say
from gemma4 import PRESETS, Gemma4
from gemma4.checkpoints.params import shape_only

CONTEXT = 1000  # tokens in the cache
ACCELERATOR = Machine("accelerator", bytes_per_second=3.35e12, flops_per_second=989e12)


@functools.cache
def shapes(name: str) -> tuple[Gemma4, Drafter]:
    """A released pair in bfloat16 without its weights."""
    target, draft_model = PRESETS[name], drafter_config.PRESETS[name]
    return shape_only(Gemma4, target, jnp.bfloat16), shape_only(Drafter, draft_model, jnp.bfloat16)


def gain(name: str, batch: int, gamma: int, alpha: float, machine: Machine) -> float:
    """The speed-up that the machine's limits allow, if each draft is accepted with probability `alpha`."""
    target, draft_model = shapes(name)
    step, verify = (least_seconds(forward_work(target, batch, n, CONTEXT), machine) for n in (1, gamma + 1))
    draft = gamma * least_seconds(draft_work(target, draft_model, batch, CONTEXT), machine)
    return speed_up(tokens_per_round([alpha**k for k in range(1, gamma + 1)]), Times(step, draft, verify, accept=0))


def check_1(small: float | None, large: float | None) -> bool:
    """The speed-up with the drafter as it is, and with the one of twice the size."""
    if small is None or large is None:
        return say("8.1", False, "give two speed-ups, of the small drafter and of the large one.")
    expected = [
        speed_up(tokens_per_round([alpha**k for k in range(1, 5)]), Times(1, 4 * step, 1.5, 0))
        for alpha, step in ((0.7, 0.1), (0.8, 0.2))
    ]
    for name, given, wanted in zip(("small", "large"), (small, large), expected, strict=True):
        if abs(given - wanted) > 0.011:
            return say(
                "8.1", False, f"look at the {name} drafter again: what does a round yield, and what do its parts cost?"
            )
    return say("8.1", True, "a better drafter may cost all that it gains.")


def check_2(best_draft_length: Callable[..., int]) -> bool:
    """best_draft_length(accepted, step, draft_step, passes) -> γ."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        accepted = np.cumprod(rng.uniform(0.4, 1.0, rng.integers(2, 9))).tolist()
        step, draft_step = rng.uniform(1, 3), rng.uniform(0.01, 0.6)
        passes = {n: step * (1 + 0.15 * (n - 1) * rng.uniform(0.5, 1.5)) for n in range(1, len(accepted) + 2)}
        speeds = {
            gamma: speed_up(tokens_per_round(accepted[:gamma]), Times(step, gamma * draft_step, passes[gamma + 1], 0))
            for gamma in range(1, len(accepted) + 1)
        }
        found = best_draft_length(accepted, step, draft_step, passes)
        if found not in speeds:
            return say(
                "8.2", False, f"for {len(accepted)} places it returned {found!r}, which is no draft length there."
            )
        if speeds[found] < max(speeds.values()) * (1 - 1e-9):
            return say("8.2", False, f"in one of 50 cases it returned {found}, and another γ is faster there.")
    return say("8.2", True, "a drafter and a machine decide together; neither has a best γ of its own.")


def check_3(batch: int | None) -> bool:
    """The smallest power of two at which E2B with γ = 8 is slower than without speculation."""
    if batch is None or batch < 1 or batch & (batch - 1):
        return say("8.3", False, "give a power of two.")
    if gain("E2B", batch, 8, 0.8, ACCELERATOR) >= 1:
        return say("8.3", False, "at this batch size speculation still gains.")
    if gain("E2B", batch // 2, 8, 0.8, ACCELERATOR) < 1:
        return say("8.3", False, "it already loses at a smaller batch.")
    return say(
        "8.3", True, "there the pass is bound by arithmetic, and every rejected draft is arithmetic for nothing."
    )
