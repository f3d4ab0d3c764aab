"""A chat with an instruction-tuned pair, turn by turn, whose KV cache stays between turns."""

from collections.abc import Generator

import jax
from tokenizers import Tokenizer

from decoding import fast
from decoding.fast.round_loop import with_room
from decoding.generation import delivered
from decoding.options import Options
from decoding.round import speculative_step
from decoding.sampling import Sampling
from decoding.stages.prefill import prefill
from decoding.state import Round
from drafter import Drafter
from gemma4 import Gemma4, KVCache
from gemma4.chat import Answer, chat, read_answer


class Conversation:
    """`reply` yields the rounds of an answer; `turns` and `answer` have its text afterwards.

    A turn reads only what the cache does not hold.  That is the user's new turn, unless the template changes what came before:
    it removes the thoughts of earlier answers.

    Errors: ValueError as `gemma4.chat.chat`, `decoding.prefill` and `Options`; NotFinite.
    """

    def __init__(
        self,
        target: Gemma4,
        draft_model: Drafter,
        tokenizer: Tokenizer,
        *,
        system: str = "",
        sampling: Sampling = Sampling(),
        draft_length: int = 4,
        max_new_tokens: int = 1024,
        thinking: bool = False,
        empty_thought: bool = False,
        key: jax.Array | None = None,
    ):
        draft_model.config.check_fits(target.config)
        self.target, self.draft_model = fast.for_backend(target), fast.for_backend(draft_model)
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        options = Options(draft_length, sampling, eos_ids=target.config.eos_token_ids)
        self.options = fast.with_kernels(options)
        self.template = {"thinking": thinking, "empty_thought": empty_thought}
        self.key = jax.random.key(0) if key is None else key
        self.turns: list[tuple[str, str]] = [("system", system)] if system else []
        self.answer = Answer("", "")
        self._cache: KVCache | None = None
        self._ids: list[int] = []  # of all turns so far; the cache holds a beginning of them

    def check(self) -> None:
        """Errors: ValueError if the tokenizer has no control tokens, or the template's settings contradict each other."""
        chat(self.tokenizer, [*self.turns, ("user", "")], **self.template)

    def reply(self, text: str) -> Generator[Round]:
        """The rounds of the answer to a user's turn.  If the caller stops early, the answer ends there."""
        turns = [*self.turns, ("user", text)]
        ids = chat(self.tokenizer, turns, **self.template)
        cache, held = self._cache, 0 if self._cache is None else int(self._cache.length[0])
        if ids[:held] != self._ids[:held] or held >= len(ids):
            cache, held = None, 0
        self._cache = None  # the prefill and each step reuse its buffers
        self.key, key = jax.random.split(self.key)
        settings = {"max_new_tokens": self.max_new_tokens, "cache_room": fast.FIRST_ROOM, "key": key}
        state = prefill(self.target, ids[held:], self.options, **settings, after=cache)
        emitted: list[int] = []
        try:
            while True:
                last = delivered(state, self.target, self.draft_model)
                emitted += last.tokens[0, : last.num_emitted[0]].tolist()
                self._cache = state.cache
                yield last
                if state.done.all():
                    return
                state, self._cache = with_room(state, self.target.config), None
                state = speculative_step(self.target, self.draft_model, state, self.options)
        finally:
            self.answer = read_answer(self.tokenizer, emitted)
            self.turns = [*turns, ("model", self.answer.text)]
            self._ids = ids + emitted
