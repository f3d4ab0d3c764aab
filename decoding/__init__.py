"""Speculative decoding with a Gemma 4 target and its MTP drafter.

The README has the reading order; begin with speculative.py, a round on one screen.
"""

from gemma4.shadowing import check_not_shadowed

check_not_shadowed("drafter")  # before anything here imports it

from decoding.accept import Acceptance, accept, accept_greedy
from decoding.accept_block import accept_block
from decoding.autoregressive import autoregressive_step
from decoding.draft import Draft, draft
from decoding.generate import Generation, generate, generate_autoregressive
from decoding.pair import Pair, load_pair
from decoding.prefill import prefill
from decoding.rollback import rollback
from decoding.sampling import Sampling
from decoding.speculative import Options, speculative_step
from decoding.state import DecodeState, Round
from decoding.stats import Stats
from decoding.verify import Verification, verify

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
    "generate",
    "generate_autoregressive",
    "load_pair",
    "prefill",
    "rollback",
    "speculative_step",
    "verify",
]

__distribution__ = "gemma4-mtp"  # tells this package from others of the name: gemma4/shadowing.py
