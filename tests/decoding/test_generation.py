"""`generate` and `generate_autoregressive`: the plain loop, what they return, what they refuse.

That the text is the target's: tests/properties.  That the other loops give the same text: tests/fast/test_loops.py.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoding
import decoding.generation
import gemma4
from decoding import Generation, Options, Round, Sampling
from decoding.fast import KERNELS
from decoding.generation import LOOPS, autoregressive_rounds, collect, speculative_rounds
from decoding.options import MAX_DRAFT_LENGTH
from decoding.sampling import REFERENCE, sample_from
from decoding.stages.accept import decide
from tests.models import TINY, drafter_config, random_drafter, random_target, small_drafter, small_target

PROMPT, PROMPTS = [2, 9, 4], [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8]]
GAMMA, NEW_TOKENS = 3, 12
# Of what a round does, which all loops call.
SOME_LOOPS = [loop if loop in ("plain", "streamed") else pytest.param(loop, marks=pytest.mark.slow) for loop in LOOPS]


def pair():
    return small_target(), small_drafter()


def plain(prompts=PROMPTS, **settings) -> tuple[Generation, list[Round]]:
    rounds: list[Round] = []
    settings = {"max_new_tokens": NEW_TOKENS, "draft_length": GAMMA, "on_round": rounds.append} | settings
    return decoding.generate(*pair(), prompts, loop="plain", **settings), rounds


# -- the plain loop ----------------------------------------------------------------------------------------------------


def test_the_plain_loop_is_prefill_then_steps_until_every_row_is_done():
    """Round for round: what `generate` delivers, what `speculative_rounds` yields, and a loop written out."""
    options = Options(GAMMA)
    _, delivered = plain()

    def prefilled():
        return decoding.prefill(small_target(), PROMPTS, options, max_new_tokens=NEW_TOKENS)

    yielded = list(speculative_rounds(*pair(), prefilled(), options))
    state = prefilled()
    written_out = [jax.device_get(state.last)]
    while not state.done.all():
        state = decoding.speculative_step(*pair(), state, options)
        written_out.append(jax.device_get(state.last))
    assert len(delivered) == len(yielded) == len(written_out) > 2
    for rounds in zip(delivered, yielded, written_out, strict=True):
        jax.tree.map(np.testing.assert_array_equal, *rounds[:2])
        jax.tree.map(np.testing.assert_array_equal, *rounds[1:])


def test_the_plain_loop_without_a_drafter():
    state = decoding.prefill(small_target(), PROMPTS, Options(0), max_new_tokens=NEW_TOKENS)
    rounds = list(autoregressive_rounds(small_target(), state, Options(0)))
    assert len(rounds) == NEW_TOKENS
    out = collect(iter(rounds))
    expected = decoding.generate_autoregressive(small_target(), PROMPTS, max_new_tokens=NEW_TOKENS, loop="plain")
    jax.tree.map(np.testing.assert_array_equal, out.tokens, expected.tokens)
    assert out.stats == expected.stats


def test_a_generation_collects_its_rounds():
    out, rounds = plain()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(rounds)), "on the host"
    assert rounds[0].num_emitted.tolist() == [1, 1] and not rounds[0].num_accepted.any(), "the prefill's"
    for row, text in enumerate(out.tokens):
        emitted = [last.tokens[row, : last.num_emitted[row]] for last in rounds]
        assert text.tolist() == np.concatenate(emitted).tolist() and text.dtype == np.int32
        assert len(text) == NEW_TOKENS
    assert out.stats.emitted == 2 * NEW_TOKENS and out.stats.prompts == 2


def test_a_prompt_is_a_batch_of_one():
    alone, _ = plain(PROMPT)
    batch, _ = plain([PROMPT])
    assert [text.tolist() for text in alone.tokens] == [text.tolist() for text in batch.tokens]


def test_nothing_runs_after_the_last_token():
    out, rounds = plain(max_new_tokens=1)
    assert len(rounds) == 1 and out.stats.rounds == 0 and [len(text) for text in out.tokens] == [1, 1]


def test_no_key_is_key_0():
    settings = {"sampling": Sampling(2.0)}
    (no_key, _), (key_0, _), (key_1, _) = (
        plain(**settings, key=key) for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert [text.tolist() for text in no_key.tokens] == [text.tolist() for text in key_0.tokens]
    assert no_key.tokens[0].tolist() != key_1.tokens[0].tolist()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_settings_reach_the_rounds(loop, monkeypatch):
    """How drafts are drawn and accepted changes the speed, not the distribution: no text would show a setting that is lost.

    The plain loop runs the reference's functions over the vocabulary, the others those of `decoding/fast`.
    """
    received = []

    def plain_rounds(target, draft_model, state, options):
        received.append(options)
        yield jax.device_get(state.last)

    def fast_rounds(state, round_fn, options, *models):
        yield from plain_rounds(*models, state, options)

    monkeypatch.setattr(decoding.generation, "speculative_rounds", plain_rounds)
    monkeypatch.setattr(decoding.fast, "run", lambda *args: fast_rounds)
    settings = {"sampling": Sampling(1.0), "draft_sampling": Sampling(0.5), "acceptance": "block", "eos_ids": (5,)}
    decoding.generate(*pair(), PROMPTS, draft_length=GAMMA, max_new_tokens=5, loop=loop, **settings)
    assert received == [Options(GAMMA, **settings, kernels=REFERENCE if loop == "plain" else KERNELS)]


@pytest.mark.parametrize("loop", LOOPS)
def test_settings_reach_the_rounds_of_the_baseline(loop, monkeypatch):
    received, sampling = [], Sampling(1.0)

    def plain_rounds(target, state, options):
        received.append(options)
        yield jax.device_get(state.last)

    def fast_rounds(state, round_fn, options, target):
        yield from plain_rounds(target, state, options)

    monkeypatch.setattr(decoding.generation, "autoregressive_rounds", plain_rounds)
    monkeypatch.setattr(decoding.fast, "run", lambda *args: fast_rounds)
    decoding.generate_autoregressive(
        small_target(), PROMPTS, max_new_tokens=5, sampling=sampling, eos_ids=(5,), loop=loop
    )
    kernels = REFERENCE if loop == "plain" else KERNELS
    assert received == [Options(0, sampling, eos_ids=(5,), kernels=kernels)]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, settings, message",
    [
        (
            PROMPT,
            {"draft_length": 0},
            "draft_length: expected at least 1, got 0; generate_autoregressive decodes without",
        ),
        (PROMPT, {"draft_length": MAX_DRAFT_LENGTH + 1}, "draft_length: expected 0 to 32 tokens a round, got 33"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (PROMPT, {"max_new_tokens": 62}, "the prompt has 3 tokens, and 62 new ones .* at most 61 new tokens"),
        ([PROMPT, PROMPT * 10], {"max_new_tokens": 40}, "prompt 1 has 30 tokens, and 40 new ones .* at most 34 new"),
        ([], {}, "the prompt is empty: expected at least one token"),
        ([PROMPT, []], {"max_new_tokens": 4}, "prompt 1 is empty: expected at least one token"),
        (PROMPT * 30, {}, "the prompt has 90 tokens, .* context of 64: shorten the prompt$"),
        ([16], {}, r"token id 16 is out of range: this model's vocabulary is 0\.\.15"),
        ([-1], {}, r"token id -1 is out of range: this model's vocabulary is 0\.\.15"),
        (
            PROMPT,
            {"acceptance": "blocks"},
            "acceptance: expected 'token', 'block' or a function like .*, got 'blocks'",
        ),
        (PROMPT, {"eos_ids": (-1,)}, "eos_ids: expected token ids from 0 to"),
        (PROMPT, {"loop": "fast"}, "loop: expected 'plain', 'streamed', 'on_device', got 'fast'"),
        (PROMPT, {"threads": 2}, "threads: 2 threads need loop=\"on_device\", got loop='streamed'"),
        (PROMPT, {"threads": 2, "loop": "plain"}, "threads: 2 threads need loop=\"on_device\", got loop='plain'"),
        (PROMPT, {"threads": 0, "loop": "on_device"}, "threads: expected at least 1, got 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_prompts_and_settings(prompt, settings, message):
    """Of both calls, in every loop that the setting allows."""
    for loop in LOOPS if "loop" not in settings and "threads" not in settings else [None]:
        chosen = settings | ({"loop": loop} if loop else {})
        with pytest.raises(ValueError, match=message):
            decoding.generate(*pair(), prompt, **chosen)
        if not {"draft_length", "acceptance"} & settings.keys():
            with pytest.raises(ValueError, match=message):
                decoding.generate_autoregressive(small_target(), prompt, **chosen)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threads": 2.0, "loop": "on_device"}, "threads: expected a whole number, got 2.0"),
        ({"loop": None}, "loop: expected 'plain', .* got None"),
    ],
    ids=str,
)
def test_settings_of_another_kind(settings, message):
    for generate in (decoding.generate, decoding.generate_autoregressive):
        models = pair() if generate is decoding.generate else pair()[:1]
        generate = inspect.unwrap(generate)  # without the annotations, which are checked in tests alone
        with pytest.raises(ValueError, match=message):
            generate(*models, PROMPT, **settings)


@pytest.mark.parametrize(
    "models, message",
    [
        (("a/path", None), "target: expected a Gemma4 .*load_pair.* got 'a/path'"),
        ((None, "a/path"), "draft_model: expected a Drafter .*load_pair.* got 'a/path'"),
        (("swapped", "swapped"), "target: expected a Gemma4 .* got Drafter"),
    ],
    ids=str,
)
def test_models_of_another_kind(models, message):
    target, draft_model = pair() if "swapped" not in models else pair()[::-1]
    models = [
        model if given in (None, "swapped") else given
        for given, model in zip(models, (target, draft_model), strict=True)
    ]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(decoding.generate)(*models, PROMPT)
    if "target" in message:
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(decoding.generate_autoregressive)(models[0], PROMPT)


def test_the_drafter_of_another_target():
    target, other = random_target(TINY["12B"]), random_drafter(drafter_config(TINY["31B"], clustered=False))
    with pytest.raises(ValueError, match=r"drafter and target do not fit \(.*KV heads: drafter 8, target 2"):
        decoding.generate(target, other, PROMPT)


@pytest.mark.parametrize("loop", SOME_LOOPS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.5)], ids=str)
def test_suppressed_tokens_are_not_in_a_text(sampling, loop):
    """With a drafter, which may propose them, and without.  Greedy texts are equal."""
    settings = {"max_new_tokens": 40, "loop": loop}

    def texts(sampling):
        rows = decoding.generate_autoregressive(small_target(), PROMPTS, sampling=sampling, **settings).tokens
        drafting = {"sampling": sampling, "draft_sampling": Sampling(), "draft_length": 3}
        return rows, decoding.generate(small_target(), small_drafter(), PROMPTS, **drafting, **settings).tokens

    usual = {int(token) for rows in texts(sampling) for row in rows for token in row}
    without = texts(dataclasses.replace(sampling, suppress_tokens=sorted(usual)[::2]))
    for rows in without:
        assert not set(sorted(usual)[::2]) & {int(token) for row in rows for token in row}
    if sampling.is_greedy:
        jax.tree.map(np.testing.assert_array_equal, *without)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5)], ids=str)
def test_logprobs_are_the_targets_own(sampling, loop):
    """Those of one forward over the whole text, within 2e-5 of the largest logit, with a drafter and without."""
    settings = {"max_new_tokens": 20, "sampling": sampling, "loop": loop, "logprobs": True}
    for out in (
        decoding.generate(small_target(), small_drafter(5), PROMPTS, draft_length=3, **settings),
        decoding.generate_autoregressive(small_target(), PROMPTS, **settings),
    ):
        for prompt, text, logprobs in zip(PROMPTS, out.tokens, out.logprobs, strict=True):
            logits = gemma4.forward(small_target(), [[*prompt, *text.tolist()]]).logits[0, len(prompt) - 1 : -1]
            expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(text)), text]
            np.testing.assert_allclose(logprobs, expected, rtol=0, atol=2e-5 * np.abs(logits).max())
    assert plain()[0].logprobs is None


@pytest.mark.parametrize("loop", SOME_LOOPS)
def test_a_rule_of_acceptance_of_your_own(loop):
    """One with the arguments of `decide`: itself gives the usual text; one that accepts nothing, one token a round."""
    settings = {
        "max_new_tokens": 20,
        "draft_length": 3,
        "loop": loop,
        "sampling": Sampling(1.0),
        "key": jax.random.key(7),
    }
    generate = functools.partial(decoding.generate, *pair(), PROMPTS, **settings)

    def nothing(target_probs, draft_tokens, draft_probs, uniforms):
        return jnp.zeros(len(draft_tokens), jnp.int32), sample_from(target_probs[:, 0], uniforms[:, -1])

    for ours, usual in zip(generate(acceptance=decide).tokens, generate().tokens, strict=True):
        np.testing.assert_array_equal(ours, usual)
    assert generate(acceptance=nothing).stats.accepted == 0
    greedy = generate(acceptance=decide, sampling=Sampling()).tokens
    for ours, usual in zip(greedy, generate(sampling=Sampling()).tokens, strict=True):
        np.testing.assert_array_equal(ours, usual)


# -- rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["plain", "streamed", "threads"])
@pytest.mark.parametrize("acceptance", ["token", "block"])
def test_rows_with_keys_of_their_own_do_not_depend_on_each_other(loop, acceptance):
    """Each text is that of the prompt alone with the row's key; the rows are of different lengths and end apart."""
    prompts, keys = [[2, 9, 4], [7, 1, 1, 5, 12, 3, 8], [3]], jax.random.split(jax.random.key(8), 3)
    settings = {"max_new_tokens": 20, "draft_length": 3, "sampling": Sampling(1.5), "eos_ids": (1,)}
    how = {"loop": "on_device", "threads": 2} if loop == "threads" else {"loop": loop}
    models = small_target(), small_drafter(5)
    together = decoding.generate(*models, prompts, key=keys, acceptance=acceptance, **settings, **how).tokens
    for key, prompt, text in zip(keys, prompts, together, strict=True):
        alone = decoding.generate(*models, prompt, key=key, acceptance=acceptance, **settings).tokens[0]
        assert text.tolist() == alone.tolist()
    baseline = {name: value for name, value in settings.items() if name != "draft_length"}
    together = decoding.generate_autoregressive(models[0], prompts, key=keys, **baseline, **how).tokens
    alone = decoding.generate_autoregressive(models[0], prompts[1], key=keys[1], **baseline).tokens[0]
    assert together[1].tolist() == alone.tolist()


def test_left_padding_with_its_mask():
    """The ids as transformers' tokenizers return them."""
    ids = np.array([[0, 0, 2, 9, 4], [7, 1, 1, 5, 12]])
    settings = {"max_new_tokens": 8, "draft_length": 3}
    models = small_target(), small_drafter(5)
    padded = decoding.generate(*models, ids, attention_mask=[[0, 0, 1, 1, 1], [1] * 5], **settings).tokens
    ragged = decoding.generate(*models, [[2, 9, 4], [7, 1, 1, 5, 12]], **settings).tokens
    assert [row.tolist() for row in padded] == [row.tolist() for row in ragged]
