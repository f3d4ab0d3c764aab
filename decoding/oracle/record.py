"""Every named tensor of one case, stage by stage, from any engine.

A name is `stage/what`, where `what` is a tap of the reference (`layers.3.query`), after `step0/` or `round2/` if there are
several steps or rounds.  A stage starts from given inputs (`cases.py`), so that a mistake in one stage does not spread to the
others; `rollback` and `rounds` chain on purpose.
"""

import functools
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from decoding.oracle.adapters import ours
from decoding.oracle.cases import (
    CASES,
    CHUNK,
    EOS,
    GAMMA,
    LENGTHS,
    LONGEST,
    MAX_NEW_TOKENS,
    ROUNDS,
    ROWS,
    SETTINGS,
    Case,
    Inputs,
)
from decoding.oracle.engine import Decision, Engine, Load, SharedKV, Tensors
from decoding.oracle.tiny import TINY, WINDOW
from decoding.sampling import Sampling
from gemma4.config import SLIDING


def record(
    case: Case,
    stages: Collection[str] | None = None,
    *,
    load: Load | None = None,
    directory: Path | None = None,
    jit: bool = False,
) -> dict[str, np.ndarray]:
    """What an engine computes in the given stages (all unless given), by name.

    load:      the adapter's entry (`engine.Load`); unless given, the reference, whose models are built in memory.
    directory: where `Case.write` wrote the checkpoints; a temporary one unless given.
    jit:       compile the reference's forwards and rounds; not where its functions are replaced (mutants).
    """
    stages = [name for name in STAGES if stages is None or name in stages]
    with tempfile.TemporaryDirectory() as scratch:
        if directory is None and (load is not None or "load" in stages):
            directory = Path(scratch)
            case.write(directory)
        this = recorder(case.name, load=load, directory=directory, jit=jit)
        return {name: value for stage in stages for name, value in this.stage(stage).items()}


def recorder(case_name: str, *, load: Load | None, directory: Path | None, jit: bool = False) -> "Recorder":
    """A recorder of one case: of the engine that `load` opens, or of the reference with its models in memory."""
    case, load_any = CASES[case_name], load or functools.partial(ours.load, jit=jit)

    def open_engine(target: str = "target") -> Engine:
        assert directory is not None, "only an engine built from `load` needs the checkpoints"
        return load_any(directory / target, directory / "drafter", case.convention)

    engine = ours.Ours(case.target(), case.draft_model(), jit=jit) if load is None else open_engine()
    return Recorder(case, engine, open_engine, case.inputs())


class Recorder:
    """One engine on one case.  A method for each stage."""

    def __init__(self, case: Case, engine: Engine, open_engine: Callable[..., Engine], inputs: Inputs):
        self.case, self.engine, self.open_engine, self.inputs = case, engine, open_engine, inputs
        self.config = TINY[case.layout]
        self.not_offered: dict[str, NotImplementedError] = {}  # parts of the last stage, by the engine's method

    def stage(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of one stage, `stage/what`.  Errors: NotImplementedError if the engine offers no part of it."""
        self.not_offered.clear()
        tensors = {f"{name}/{what}": np.asarray(value) for what, value in STAGES[name](self).items()}
        if not tensors and self.not_offered:
            raise next(iter(self.not_offered.values()))
        return tensors

    def part(self, method: str, tensors: Callable[..., Tensors], *given: Any) -> Tensors:
        """A part of a stage that stands by itself, `tensors(*given)`; nothing if the engine does not offer the method."""
        try:
            return tensors(*given)
        except NotImplementedError as error:
            self.not_offered[method] = error
            return {}

    def given(self, stage: str) -> Inputs:
        return {
            name.removeprefix(f"{stage}/"): value for name, value in self.inputs.items() if name.startswith(f"{stage}/")
        }

    @property
    def prompts(self) -> list[list[int]]:
        """Rows of w - 1, w, w + 1 and 2w + 3 tokens."""
        given = self.given("forward")
        return [row[:length].tolist() for row, length in zip(given["tokens"], given["lengths"], strict=True)]

    # -- the target --------------------------------------------------------------------------------------------------------

    def load(self) -> Tensors:
        """The checkpoint through the engine's own loader, also with K/V weights that no layer uses."""
        tokens, given = self.given("forward")["tokens"], self.given("draft")
        engine = self.open_engine()

        def draft_step() -> Tensors:
            shared = engine.shared_from(given_kv(given))
            return {"draft_logits": engine.draft_step(shared, given["token"][:, 0], given["hidden"][:, 0])["logits"]}

        def unused_kv() -> Tensors:
            return {"unused_kv.logits": self.open_engine("target_with_unused_kv").forward(tokens)["logits"]}

        out = self.part("forward", lambda: {"logits": engine.forward(tokens)["logits"]})
        out |= self.part("draft_step", draft_step)
        return out | (self.part("forward", unused_kv) if self.config.num_kv_shared_layers else {})

    def rope(self) -> Tensors:
        """RoPE of each basis vector, at positions near and far: `near` [position, vector, head_dim], `far`."""
        positions = self.given("rope")["positions"]
        near = positions < 1000
        out = {}
        for kind in self.config.donors:
            head_dim = self.config.rope(kind)[0]
            basis = np.broadcast_to(np.eye(head_dim, dtype=np.float32), (len(positions), head_dim, head_dim))
            rotated = self.engine.rotated(kind, basis, positions)
            out |= {f"{kind}.near": rotated[near], f"{kind}.far": rotated[~near]}
        return out

    def forward(self) -> Tensors:
        """Rows of equal length, without a cache."""
        return self.engine.forward(self.given("forward")["tokens"])

    def prefill(self) -> Tensors:
        """Rows of different lengths into a cache, in one pass."""
        return padded(self.engine.prefill(self.prompts, LONGEST, CHUNK)[0])

    def chunked(self) -> Tensors:
        """The same in chunks of gamma + 1."""
        return padded(self.engine.prefill(self.prompts, CHUNK, CHUNK)[0])

    def stepwise(self) -> Tensors:
        """The same, one token at a time."""
        return padded(self.engine.prefill(self.prompts, 1, CHUNK)[0])

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self) -> Tensors:
        """The donors' K/V by position, within the window in sliding layers; zeros elsewhere."""
        _, cache = self.engine.prefill(self.prompts, CHUNK, CHUNK)
        return visible_kv(self.engine.shared_kv(self.engine.share(cache)))

    def draft(self) -> Tensors:
        """Every step from its given token and hidden state; then a block of greedy drafts, each step fed by the one before."""
        given = self.given("draft")
        shared = self.engine.shared_from(given_kv(given))

        def steps() -> Tensors:
            out = {}
            for step in range(GAMMA):
                taps = self.engine.draft_step(shared, given["token"][:, step], given["hidden"][:, step])
                out |= {f"step{step}/{name}": value for name, value in taps.items()}
            return out

        def block() -> Tensors:
            block = self.engine.draft(shared, given["token"][:, 0], given["hidden"][:, 0], GAMMA)
            return {"block/tokens": block.tokens, "block/told": block.claimed}

        return self.part("draft_step", steps) | self.part("draft", block)

    # -- one round's stages ------------------------------------------------------------------------------------------------

    def verify(self) -> Tensors:
        """gamma + 1 tokens after rows of different lengths.  Only the two taps that a round reads; `forward` has the others."""
        given = self.given("verify")
        _, cache = self.engine.prefill(self.prompts, CHUNK, CHUNK)
        taps, _ = self.engine.verify(cache, given["token"], given["drafts"])
        return {name: value for name, value in taps.items() if name in ("logits", "hidden")}

    def law(self) -> Tensors:
        """The target's distribution under each setting; the one that drafts are drawn from, and the one acceptance receives."""
        logits, out = self.given("law")["logits"], {}

        def of_target(name: str, sampling: Sampling) -> Tensors:
            return {name: self.engine.token_probs(logits, sampling)}

        def of_drafts(name: str, sampling: Sampling) -> Tensors:
            drawn, claimed = self.engine.draft_probs(logits, sampling)
            return {f"{name}.drawn": drawn, f"{name}.told": claimed}

        for name, sampling in SETTINGS.items():
            out |= self.part("token_probs", of_target, name, sampling)
            out |= self.part("draft_probs", of_drafts, name, sampling)
        return out

    def accept(self) -> Tensors:
        """Sampled drafts and greedy drafts (a one-hot distribution) under a sampled target; and a greedy target."""
        given = self.given("accept")

        def greedy() -> Tensors:
            decided = self.engine.accept_greedy(given["logits"], given["greedy_drafts"])
            return {f"greedy.{name}": value for name, value in decided._asdict().items()}

        return self.part("accept", decisions, self.engine.accept, given) | self.part("accept_greedy", greedy)

    def accept_block(self) -> Tensors:
        """Sampled and greedy drafts under a sampled target, by block verification.  Optional: few engines have it."""
        return decisions(self.engine.accept_block, self.given("accept_block"))

    def emit(self) -> Tensors:
        """How a run of tokens ends: EOS within it, the end of the budget."""
        given = self.given("emit")
        num_emitted, done = self.engine.emitted(given["tokens"], given["num_tokens"], given["room"], (EOS,))
        return {"num_emitted": num_emitted, "done": np.asarray(done, np.int32)}

    def rollback(self) -> Tensors:
        """Rounds of given blocks and counts: verify, keep some, share, one draft step from the last kept hidden state."""
        given = self.given("rollback")
        _, cache = self.engine.prefill(self.prompts, CHUNK, CHUNK)
        out = {}
        for round in range(ROUNDS):
            block, kept = given["blocks"][round], given["kept"][round]
            taps, cache = self.engine.verify(cache, block[:, 0], block[:, 1:])
            cache = self.engine.rollback(cache, kept)
            shared = self.engine.share(cache)
            hidden = taps["hidden"][np.arange(ROWS), kept - 1]
            step = self.engine.draft_step(shared, given["blocks"][round + 1][:, 0], hidden)
            out |= {f"round{round}/logits": taps["logits"], f"round{round}/hidden": taps["hidden"]}
            out |= {f"round{round}/draft.{name}": step[name] for name in ("logits", "post_projection")}
        block = given["blocks"][ROUNDS]
        taps, _ = self.engine.verify(cache, block[:, 0], block[:, 1:])
        return out | {"next_logits": taps["logits"]}

    def rounds(self) -> Tensors:
        """The engine's own loop, greedy, scripted drafts, to the end: one row ends with an EOS, the other with its budget."""
        given = self.given("rounds")
        prompts = [row[:length].tolist() for row, length in zip(given["prompts"], given["lengths"], strict=True)]
        rounds = self.engine.rounds(prompts, given["script"], GAMMA, MAX_NEW_TOKENS, (int(given["eos"][0]),))
        room = np.full(len(prompts), MAX_NEW_TOKENS - 1)  # the prefill emitted one
        out = {}
        for i, it in enumerate(rounds):
            out |= {f"round{i}/{name}": value for name, value in without_the_meaningless(it, room).items()}
            room = np.where(it["num_emitted"] > 0, room - it["num_emitted"], room)
        return out


STAGES: dict[str, Callable[[Recorder], Tensors]] = {
    name: getattr(Recorder, name)
    for name in (
        "load", "rope", "forward", "prefill", "chunked", "stepwise", "share", "draft", "verify", "law", "accept",
        "accept_block", "emit", "rollback", "rounds",
    )
}  # fmt: skip
# The stages that depend on the drafter's convention; the others are the same in both cases of a layout.
OF_THE_CONVENTION = ("load", "draft", "rollback", "rounds")


def decisions(accept: Callable[..., Decision], given: Inputs) -> Tensors:
    """Under a sampled target: of sampled drafts, and of greedy ones, whose distribution is one-hot."""
    one_hot = np.float32(np.eye(given["draft_probs"].shape[-1])[given["greedy_drafts"]])
    kinds = {"sampled": (given["drafts"], given["draft_probs"]), "one_hot": (given["greedy_drafts"], one_hot)}
    return {
        f"{kind}.{name}": value
        for kind, proposed in kinds.items()
        for name, value in accept(given["target_probs"], *proposed, given["uniforms"])._asdict().items()
    }


def without_the_meaningless(round: Tensors, room: np.ndarray) -> Tensors:
    """-1 for tokens after the emitted ones and for drafts past the budget; hidden states of 0 for rows that had ended."""
    num_emitted, drafts = np.asarray(round["num_emitted"]), round["own_drafts"]
    is_live = (num_emitted > 0)[:, None]
    emitted = np.arange(round["tokens"].shape[1]) < num_emitted[:, None]
    has_room = np.arange(drafts.shape[1]) < room[:, None] - 1
    return {
        "own_drafts": np.where(has_room & is_live, drafts, -1),
        "tokens": np.where(emitted, round["tokens"], -1),
        "num_emitted": num_emitted,
        "hidden": np.where(is_live, round["hidden"], 0),
        "length": round["length"],
    }


def padded(rows: list[Tensors]) -> Tensors:
    """[row, longest, ...] of each name; zeros past a row's length."""
    out = {}
    for name, first in rows[0].items():
        out[name] = np.zeros((len(rows), max(LENGTHS), *first.shape[1:]), first.dtype)
        for row, taps in enumerate(rows):
            out[name][row, : len(taps[name])] = taps[name]
    return out


def given_kv(given: Inputs) -> SharedKV:
    kv = {name: value for name, value in given.items() if name.endswith((".key", ".value"))}
    return SharedKV(kv, given["lengths"])


def visible_kv(shared: SharedKV) -> Tensors:
    """The K/V within the length and, in a sliding layer, within the window; zeros elsewhere."""
    out = {}
    for name, kv in shared.kv.items():
        positions, lengths = np.arange(kv.shape[2]), np.asarray(shared.lengths)[:, None]
        first = lengths - WINDOW if name.startswith(SLIDING) else 0
        mask = (positions < lengths) & (positions >= first)
        out[name] = np.where(mask[:, None, :, None], kv, 0)
    return out | {"length": np.asarray(shared.lengths, np.int32)}
