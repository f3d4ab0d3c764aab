"""transformers 5.22.2 behind the oracle's interface.  Needs the extra `parity` (torch, transformers).

Its loops take one row at a time, so a batch is a list of rows here.  Where a stage is part of a longer function of transformers
(`_assisted_decoding` in `generation/utils.py`, `get_candidates` in `generation/candidate_generator.py`), its lines are repeated
here; `rounds` runs the real loop.

Two differences from ours are known and confirmed:

- After a partial acceptance its drafter sees K/V of rejected drafts.  In full layers it sees one position of them, because the
  K/V are truncated at the length of the text, whose newest token has none yet.  In sliding layers it sees all of them, once the
  cache has dropped its oldest positions.
- Its drafts are the drafter's argmax, but acceptance receives softmax(logits), so the distribution of sampled text is not the
  target's (https://github.com/huggingface/transformers/issues/47932).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import transformers
from transformers import DynamicCache, Gemma4AssistantForCausalLM, Gemma4ForCausalLM
from transformers.generation import candidate_generator
from transformers.generation.utils import _speculative_sampling
from transformers.models.gemma4 import modeling_gemma4 as modeling

from decoding.oracle.adapters.hf_taps import drafter_taps, target_taps
from decoding.oracle.engine import Decision, DraftBlock, Engine, SharedKV, Tensors
from decoding.oracle.script import BY_ITSELF
from decoding.sampling import Sampling
from drafter.config import TRANSFORMERS
from gemma4.config import SLIDING

VERSION = "5.22.2"
KeyValue = dict[str, tuple[torch.Tensor, ...]]  # key and value of each layer type -> [1, k, s, h]


class Row(NamedTuple):
    """The cache of one row, and the state after the last forward."""

    cache: DynamicCache
    length: int  # committed tokens
    end: int  # tokens after the last forward, rejected ones included
    shared: KeyValue | None = None


class SharedRow(NamedTuple):
    kv: KeyValue
    length: int
    end: int  # the position after the last one that sliding layers hold


class Transformers(Engine):
    def __init__(self, target: Gemma4ForCausalLM, assistant: Gemma4AssistantForCausalLM):
        self.target, self.assistant = target.eval(), assistant.eval()

    # -- the target --------------------------------------------------------------------------------------------------------

    def rotated(self, layer_type: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        batch = torch.tensor(x)[None]
        cos_sin = self.target.model.rotary_emb(batch, torch.tensor(positions)[None], layer_type)
        return modeling.apply_rotary_pos_emb(batch, *cos_sin, unsqueeze_dim=2)[0].numpy()

    @torch.no_grad()
    def forward(self, tokens: np.ndarray) -> Tensors:
        with target_taps(self.target, *tokens.shape) as taps:
            self.target(torch.tensor(tokens), use_cache=False)
        return taps

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, room: int) -> tuple[list[Tensors], list[Row]]:
        taps_of_rows, rows = [], []
        for prompt in prompts:
            cache = DynamicCache(config=self.target.config)
            cache.activate_past_recording()
            row, parts = Row(cache, 0, 0), []
            for start in range(0, len(prompt), chunk):
                taps, row = self._extend(row, np.array(prompt[start : start + chunk]))
                row = self._kept(row, row.end)
                parts.append(taps)
            taps_of_rows.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
            rows.append(row)
        return taps_of_rows, rows

    @torch.no_grad()
    def _extend(self, row: Row, tokens: np.ndarray) -> tuple[Tensors, Row]:
        with target_taps(self.target, 1, len(tokens)) as batch_taps:
            out = self.target(
                torch.tensor(tokens)[None], past_key_values=row.cache, use_cache=True, return_shared_kv_states=True
            )
        taps = {name: value[0] for name, value in batch_taps.items()}
        return taps, Row(row.cache, row.length, row.length + len(tokens), dict(out.shared_kv_states))

    def _kept(self, row: Row, length: int) -> Row:
        row.cache.crop(-(row.end - length))
        return row._replace(length=length)

    def verify(self, cache: list[Row], token: np.ndarray, drafts: np.ndarray) -> tuple[Tensors, list[Row]]:
        blocks = np.concatenate([token[:, None], drafts], axis=1)
        taps, rows = zip(*(self._extend(row, block) for row, block in zip(cache, blocks, strict=True)), strict=True)
        return {name: np.stack([tap[name] for tap in taps]) for name in ("logits", "hidden")}, list(rows)

    def rollback(self, cache: list[Row], num_kept: np.ndarray) -> list[Row]:
        return [self._kept(row, row.length + int(kept)) for row, kept in zip(cache, num_kept, strict=True)]

    # -- the drafter -------------------------------------------------------------------------------------------------------

    def share(self, cache: list[Row]) -> list[SharedRow]:
        return [SharedRow(truncated_kv(row), row.length, row.end) for row in cache]

    def shared_kv(self, shared: list[SharedRow]) -> SharedKV:
        lengths = np.array([row.length for row in shared], np.int32)
        out = {}
        for kind in shared[0].kv:
            for index, part in enumerate(("key", "value")):
                first = shared[0].kv[kind][index]
                buffer = np.zeros((len(shared), first.shape[1], int(lengths.max()), first.shape[3]), np.float32)
                for row, it in enumerate(shared):
                    have = it.kv[kind][index][0].numpy()
                    begin = it.end - have.shape[1] if kind == SLIDING and it.end > have.shape[1] else 0
                    last = min(begin + have.shape[1], it.length)
                    buffer[row][:, begin:last] = have[:, : last - begin]
                out[f"{kind}.{part}"] = buffer
        return SharedKV(out, lengths)

    def shared_from(self, given: SharedKV) -> list[SharedRow]:
        kinds = {name.rsplit(".", 1)[0] for name in given.kv}

        def kv_of(row: int, length: int) -> KeyValue:
            take = lambda x: torch.tensor(x[row : row + 1, :, :length])
            return {kind: tuple(take(given.kv[f"{kind}.{part}"]) for part in ("key", "value")) for kind in kinds}

        return [SharedRow(kv_of(row, int(n)), int(n), int(n)) for row, n in enumerate(given.lengths)]

    def draft_step(self, shared: list[SharedRow], token: np.ndarray, hidden: np.ndarray) -> Tensors:
        steps = [self._step(*row) for row in zip(shared, token.tolist(), hidden, strict=True)]
        return {name: np.stack([step[name] for step in steps]) for name in steps[0]}

    @torch.no_grad()
    def _step(self, shared: SharedRow, token: int, hidden: np.ndarray) -> Tensors:
        embedding = self.target.get_input_embeddings()(torch.tensor([[token]]))
        with drafter_taps(self.assistant) as taps:
            out = self.assistant(
                inputs_embeds=torch.cat([embedding, torch.tensor(hidden)[None, None]], dim=-1),
                position_ids=torch.tensor([[shared.length]]),
                shared_kv_states=shared.kv,
            )
        return {name: value[0, 0].numpy() for name, value in {**taps, "logits": out.logits}.items()}

    def draft(self, shared: list[SharedRow], token: np.ndarray, hidden: np.ndarray, draft_length: int) -> DraftBlock:
        tokens, claimed = [], []
        for _ in range(draft_length):
            step = self.draft_step(shared, token, hidden)
            token, hidden = step["logits"].argmax(axis=-1).astype(np.int32), step["post_projection"]
            tokens.append(token)
            claimed.append(self.draft_probs(step["logits"], Sampling())[1])
        return DraftBlock(np.stack(tokens, axis=1), np.stack(claimed, axis=1))

    # -- acceptance --------------------------------------------------------------------------------------------------------

    def token_probs(self, logits: np.ndarray, sampling: Sampling) -> np.ndarray:
        if sampling.temperature == 0:
            return np.eye(logits.shape[-1], dtype=np.float32)[logits.argmax(axis=-1)]
        warpers: list[Any] = [transformers.TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_k:
            warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
        scores = torch.tensor(logits)
        for warper in warpers:
            scores = warper(None, scores)
        return torch.softmax(scores, dim=-1).numpy()

    def draft_probs(self, logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Drafts are the argmax under any sampling; `_speculative_sampling` takes the softmax of their logits as q."""
        one_hot = np.eye(logits.shape[-1], dtype=np.float32)[logits.argmax(axis=-1)]
        return one_hot, torch.softmax(torch.tensor(logits), dim=-1).numpy()

    def accept(
        self, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray, uniforms: np.ndarray
    ) -> Decision:
        rows = zip(*map(torch.tensor, (target_probs, drafts, draft_probs, uniforms)), strict=True)
        return Decision(*np.array([self._accept_row(*row) for row in rows], np.int32).T)

    def _accept_row(
        self, target_probs: torch.Tensor, drafts: torch.Tensor, draft_probs: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[int, int]:
        """`_speculative_sampling` with its random numbers given."""

        def draw(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
            running = probs[0].cumsum(dim=-1)
            return (running > uniforms[-1] * running[-1]).int().argmax().reshape(1, 1)

        given = mock.patch.object(torch, "rand_like", lambda like: uniforms[:-1])
        with given, mock.patch.object(torch, "multinomial", draw):
            tokens, num_accepted = _speculative_sampling(
                drafts[None], draft_probs.log()[None], len(drafts), target_probs.log()[None]
            )
        return int(num_accepted), int(tokens[0, -1])

    def accept_block(
        self, target_probs: np.ndarray, drafts: np.ndarray, draft_probs: np.ndarray, uniforms: np.ndarray
    ) -> Decision:
        raise NotImplementedError("transformers has no block verification")

    def accept_greedy(self, logits: np.ndarray, drafts: np.ndarray) -> Decision:
        selected = torch.tensor(logits).argmax(dim=-1)
        differs = ~(torch.tensor(drafts) == selected[:, :-1])
        num_accepted = (differs.cumsum(dim=-1) < 1).sum(dim=-1)
        return Decision(num_accepted.numpy(), selected.gather(1, num_accepted[:, None])[:, 0].numpy())

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def emitted(
        self, tokens: np.ndarray, num_tokens: np.ndarray, room: np.ndarray, eos_ids: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        counts, done = [], []
        for row, count, budget in zip(tokens, num_tokens, room, strict=True):
            valid = torch.tensor(row[:count])[:budget]
            ends = torch.isin(valid, torch.tensor(eos_ids)).nonzero()
            if ends.numel() > 0:
                valid = valid[: ends[0].item() + 1]
            counts.append(len(valid))
            done.append(ends.numel() > 0 or len(valid) == budget)
        return np.array(counts), np.array(done)

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        script: np.ndarray,
        draft_length: int,
        max_new_tokens: int,
        eos_ids: tuple[int, ...],
    ) -> list[Tensors]:
        """Each row by itself through `generate`; a row that has ended repeats its last round and emits nothing."""
        rows = [
            self._row_rounds(prompt, plan, draft_length, max_new_tokens, eos_ids)
            for prompt, plan in zip(prompts, script, strict=True)
        ]
        count = max(map(len, rows))
        rows = [[*row, *[{**row[-1], "num_emitted": np.array(0)}] * (count - len(row))] for row in rows]
        return [{name: np.stack([row[i][name] for row in rows]) for name in rows[0][i]} for i in range(count)]

    def _row_rounds(
        self,
        prompt: Sequence[int],
        plan: np.ndarray,
        draft_length: int,
        max_new_tokens: int,
        eos_ids: tuple[int, ...],
    ) -> list[Tensors]:
        lengths, drafts, hidden = [], [], []
        propose = candidate_generator.SinglePositionMultiTokenCandidateGenerator.get_candidates

        def scripted(this: Any, input_ids: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
            candidates, logits = propose(this, input_ids, *args, **kwargs)
            n = input_ids.shape[1]
            lengths.append(n)
            drafts.append(candidates[0, n:].clone())
            planned = torch.tensor(plan[n : candidates.shape[1]], dtype=candidates.dtype)
            candidates[0, n:] = torch.where(planned == BY_ITSELF, candidates[0, n:], planned)
            return candidates, logits

        watch = self.target.register_forward_hook(lambda module, args, out: hidden.append(out.hidden_states[-1][0]))
        self.assistant.generation_config.num_assistant_tokens = draft_length
        kind = candidate_generator.SinglePositionMultiTokenCandidateGenerator
        with mock.patch.object(kind, "get_candidates", scripted):
            target: Any = self.target  # whose type hints do not have `generate`
            text = target.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                assistant_model=self.assistant,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(eos_ids) or None,
                pad_token_id=0,
            )[0]
        watch.remove()
        rounds = zip(lengths[1:], [*lengths[2:], len(text)], drafts[1:], hidden[1:], strict=True)
        return [self._round(text, *it, draft_length) for it in rounds]

    def _round(
        self,
        text: torch.Tensor,
        start: int,
        end: int,
        drafts: torch.Tensor,
        hidden: torch.Tensor,
        draft_length: int,
    ) -> Tensors:
        filled = lambda values, size: np.concatenate([values.numpy(), np.full(size - len(values), -1)])
        return {
            "own_drafts": filled(drafts, draft_length),
            "tokens": filled(text[start:end], draft_length + 1),
            "num_emitted": np.array(end - start),
            "hidden": hidden[end - start - 1].numpy(),
            "length": np.array(end - 1),
        }


def truncated_kv(row: Row) -> KeyValue:
    """As `get_candidates` truncates the K/V: at the length of the text, one more than the committed positions."""
    assert row.shared is not None, "no forward has run"
    return {kind: tuple(x[:, :, : row.length + 1] for x in kv) for kind, kv in row.shared.items()}


def load(target_dir: Path, drafter_dir: Path, convention: str) -> Transformers:
    """An adapter's entry.  Errors: NotImplementedError for the other convention; ImportError for another version."""
    if convention != TRANSFORMERS:
        raise NotImplementedError("transformers has only its own convention")
    if transformers.__version__ != VERSION:
        raise ImportError(
            f"expected transformers {VERSION}, got {transformers.__version__}; 5.23.0 cannot build a drafter"
        )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # at these sizes a second thread only waits
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    # The grouped implementation of the experts refuses sizes as small as ours.
    target = Gemma4ForCausalLM.from_pretrained(target_dir, experts_implementation="eager", **settings)
    return Transformers(target, Gemma4AssistantForCausalLM.from_pretrained(drafter_dir, **settings))
