"""Speculative decoding with a Gemma 4 target and its MTP drafter.

The README has the reading order; begin with round.py, a round on one screen.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder


def _check_gemma4() -> None:
    """Errors: ImportError if another package hides our gemma4, which could not say so itself; one line for `python -m`."""
    spec = importlib.util.find_spec("gemma4")
    if spec is None or PathFinder.find_spec("gemma4.shadowing", spec.submodule_search_locations or []):
        return
    location = spec.origin or ", ".join(spec.submodule_search_locations or [])
    message = (
        f"the package 'gemma4' at {location} is not gemma4-mtp's, but hides it: rename it, or start Python elsewhere"
    )
    if sys.argv[:1] != ["-m"]:
        raise ImportError(message, name="gemma4")
    print("gemma4-mtp: error:", ascii(message)[1:-1], file=sys.stderr)
    raise SystemExit(2)


_check_gemma4()

from gemma4.shadowing import check_not_shadowed

check_not_shadowed("drafter")  # before anything here imports it

from decoding.baseline import autoregressive_step
from decoding.generation import Generation, generate, generate_autoregressive
from decoding.generation_config import load_sampling
from decoding.load import Pair, export_pair, load_pair, save_pair
from decoding.options import Options
from decoding.round import speculative_step
from decoding.sampling import Sampling
from decoding.stages.accept import Acceptance, accept, accept_greedy
from decoding.stages.accept_block import accept_block
from decoding.stages.draft import Draft, draft
from decoding.stages.prefill import prefill
from decoding.stages.rollback import rollback
from decoding.stages.verify import Verification, verify
from decoding.state import DecodeState, Round
from decoding.stats import Stats

__all__ = [
    "Acceptance",
    "DecodeState",
    "Draft",
    "Generation",
    "Options",
    "Pair",
    "Round",
    "Sampling",
    "Stats",
    "Verification",
    "accept",
    "accept_block",
    "accept_greedy",
    "autoregressive_step",
    "draft",
    "export_pair",
    "generate",
    "generate_autoregressive",
    "load_pair",
    "load_sampling",
    "prefill",
    "rollback",
    "save_pair",
    "speculative_step",
    "verify",
]

__distribution__ = "gemma4-mtp"  # tells this package from others of the name: gemma4/shadowing.py
