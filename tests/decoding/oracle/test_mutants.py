"""Mutants are what they claim: one change in one function, which shows; and correct variants do not show."""

import fnmatch
import itertools
from pathlib import Path

import numpy as np
import pytest

from decoding.oracle.adapters.ours import Ours
from decoding.oracle.cases import CASES
from decoding.oracle.diagnose import case_and_stage, differs, error, reference, under
from decoding.oracle.known_bugs import CLASSES, EQUIVALENT, INEXPRESSIBLE, MUTANTS, NOT_IN_TEXT
from decoding.oracle.known_bugs.mutant import locate, source_of
from decoding.oracle.known_bugs_page import page, verdicts_on
from decoding.oracle.record import record

PAGE = Path(__file__).parents[3] / "tutorials" / "reference" / "known_bugs.md"
VARIANTS = {**MUTANTS, **EQUIVALENT}


def test_the_catalogue_is_covered():
    """Every bug has a mutant or a reason why not; every class that shows in text has a mutant."""
    expressed = {bug for variant in VARIANTS.values() for bug in variant.bugs}
    assert expressed | INEXPRESSIBLE.keys() == {f"B{number:02}" for number in range(1, 98)}
    assert not expressed & INEXPRESSIBLE.keys()
    assert {mutant.rank for mutant in MUTANTS.values()} == CLASSES.keys() - NOT_IN_TEXT.keys()
    assert len(MUTANTS) >= 60 and len(VARIANTS) == len(MUTANTS) + len(EQUIVALENT)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_its_function(name):
    """The text to change is in the reference, once, and the result is Python."""
    variant = VARIANTS[name]
    variant.compiled()
    assert variant.source() != source_of(variant.function)
    assert "+" in {line[0] for line in variant.diff().splitlines()} <= {"-", "+"}
    for bug in variant.bugs:
        assert variant.seen_in, f"{name}: {bug} has been seen somewhere"


def test_a_change_that_does_not_fit_is_refused():
    mutant = MUTANTS["norm-weight-plus-one"]
    message = "norm-weight-plus-one: expected this text once in gemma4.functional.rms_norm, found it . times"
    for old in ("no such text", "x32"):
        with pytest.raises(
            ValueError,
            match=message,
        ):
            type(mutant)(**{**vars(mutant), "change": {old: "y"}}).source()


@pytest.mark.parametrize(
    "name, places",
    {
        "norm-weight-plus-one": ("gemma4.functional.rms_norm", "gemma4.layers.rms_norm", "gemma4.moe.rms_norm"),
        "value-not-normed": ("gemma4.layers.Attention._key_value",),
        "donor-is-the-first-owner": ("gemma4.config.Config.donors",),
        "no-rollback": ("gemma4.truncate", "gemma4.cache.truncate", "decoding.stages.rollback.truncate"),
        "hidden-never-renewed": ("decoding.state.advance", "decoding.round.advance"),
        "first-hidden-of-row-zero": ("decoding.stages.prefill._read_chunk",),
    }.items(),
)
def test_a_mutant_is_in_force_within_its_block_only(name, places):
    """Under every name that the function has been imported by."""
    now = lambda: [vars(owner)[attribute] for owner, attribute in map(locate, places)]
    before = now()
    with MUTANTS[name].apply():
        assert all(new is not old for new, old in zip(now(), before, strict=True))
        assert len(set(map(id, now()))) == 1
    assert all(new is old for new, old in zip(now(), before, strict=True))


def stages_of_mutants() -> list:
    """The stages at which mutants show.  Whole rounds, drafts and chunks take long, and many mutants are tried there."""
    stages = sorted({case_and_stage(mutant.shows_at) for mutant in MUTANTS.values()})
    is_slow = lambda stage: stage[0] != "E2B" or stage[1] in ("rounds", "draft", "chunked")
    return [pytest.param(stage, marks=[pytest.mark.slow] * is_slow(stage), id="/".join(stage)) for stage in stages]


@pytest.mark.parametrize("stage", stages_of_mutants())
def test_every_mutant_is_killed(stage):
    """`shows_at` is the first tensor of its stage that differs; that or a later one by ten tolerances or a whole number.

    If the stage has the target's logits, their difference fits the mutant's effect.
    One test for all mutants of a stage, because the first run of a stage in a process takes most of the time.
    """
    right = reference(*stage).tensors
    for mutant in MUTANTS.values():
        if case_and_stage(mutant.shows_at) != stage:
            continue
        theirs = under(mutant, *stage)
        off = {tensor: error(tensor, theirs[tensor], right[tensor]) for tensor in right if tensor in theirs}
        wrong = [tensor for tensor, units in off.items() if differs(tensor, units, right[tensor])]
        assert wrong[:1] == [mutant.shows_at], mutant.name
        assert any(off[it] >= 10 or not np.issubdtype(right[it].dtype, np.floating) for it in wrong), mutant.name
        if (logits := "/".join([*stage, "logits"])) in right:
            keeps_text = (theirs[logits].argmax(axis=-1) == right[logits].argmax(axis=-1)).all()
            assert mutant.effect in possible_effects(logits in wrong, keeps_text), mutant.name


def possible_effects(logits_differ: bool, keeps_text: bool) -> tuple[str, ...]:
    """Of a difference in the target's logits.  Texts here are short: a bug that changes only later tokens keeps them."""
    if not logits_differ:
        return "nothing", "fewer accepted drafts"
    return ("wrong probabilities", "wrong text") if keeps_text else ("wrong text",)


@pytest.mark.parametrize(
    "stage", ["chunked", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("draft", "rounds"))]
)
def test_a_dump_is_of_the_same_reference(stage):
    """Dumps are recorded jitted, mutants operation by operation: the same tensors, in the same order."""
    right = reference("E2B", stage).tensors
    dumped = {f"E2B/{name}": value for name, value in record(CASES["E2B"], [stage], jit=True).items()}
    assert list(dumped) == list(right)
    assert max(error(name, dumped[name], right[name]) for name in right) < 0.5


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[pytest.mark.slow] * (not stage.startswith("E2B/")))
        for stage in sorted({variant.tried_at for variant in EQUIVALENT.values()})
    ],
)
def test_no_equivalent_variant_is_flagged(stage):
    """Each takes part in its stage, and its tensors agree with the reference."""
    right, called = reference(*stage.split("/"))
    for variant in EQUIVALENT.values():
        if variant.tried_at != stage:
            continue
        assert variant.function in called, variant.name
        other = under(variant, *stage.split("/"))
        is_meant = lambda tensor, at=variant.same_at: any(fnmatch.fnmatch(tensor.split("/", 1)[1], it) for it in at)
        meant = [tensor for tensor in right if is_meant(tensor)]
        off = [it for it in meant if differs(it, error(it, other[it], right[it]), right[it])]
        assert not off and bool(meant) == bool(variant.same_at), variant.name


def test_the_page_is_up_to_date():
    """All but the last two columns, which the complete confusion run printed."""
    text = PAGE.read_text()
    verdicts = verdicts_on(text)
    assert verdicts.keys() == MUTANTS.keys()
    assert "\n".join(page(verdicts)) + "\n" == text, "write it again: gemma4-mtp oracle mutants --confusion"
    assert [verdict.from_all for verdict in verdicts.values()].count("named") >= 0.9 * len(MUTANTS)


# -- variants that draw other tokens -----------------------------------------------------------------------------------

TARGET, DRAFTER = np.float32([5, 3, 6, 2]) / 16, np.float32([2, 6, 4, 4]) / 16  # sixteenths: exact in binary


def first_token_probs() -> np.ndarray:
    """Of a round with one draft.  Every threshold is a multiple of 1/16, so the 16 uniforms between them cover all cases."""
    engine, middles = Ours(CASES["E2B"].target(), CASES["E2B"].draft_model()), (np.arange(16) + 0.5) / 16
    uniforms = np.float32(list(itertools.product(middles, middles)))
    probs = np.zeros(4)
    for draft in range(4):
        rows = lambda values: np.repeat(values, len(uniforms), axis=0)
        drafts = np.full((len(uniforms), 1), draft, np.int32)
        out = engine.accept(rows(np.stack([TARGET, TARGET])[None]), drafts, rows(DRAFTER[None, None]), uniforms)
        first = np.where(out.num_accepted, draft, out.next_token)
        probs += DRAFTER[draft] * np.bincount(first, minlength=4) / len(uniforms)
    return probs


def test_matching_with_the_targets_own_sample_keeps_the_distribution():
    with EQUIVALENT["draft-matched-with-the-targets-sample"].apply():
        np.testing.assert_allclose(first_token_probs(), TARGET, atol=1e-12)


def test_a_second_sample_after_a_mismatch_does_not():
    with MUTANTS["sample-match-with-a-fresh-correction"].apply():
        assert np.abs(first_token_probs() - TARGET).max() > 0.02
