"""transformers side by side, as `gemma4-mtp bench --against transformers` runs it: the same texts, and plausible figures."""

import dataclasses

import pytest

from decoding.bench.extra import peer as peer_module
from decoding.bench.extra.peer import Transformers, compare
from decoding.bench.report import lines
from decoding.bench.subject import Subject
from tests.models import TINY, TINY_DRAFTERS, random_drafter, random_target, restless

pytestmark = pytest.mark.slow

PROMPTS, NEW_TOKENS, GAMMA, RUNS = [[2, 9, 4, 33], [7, 1, 60, 5, 12, 3, 8, 8, 41, 2, 19]], 20, 3, 2


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def found(module_patch) -> dict:
    module_patch.setattr(peer_module, "num_cores", lambda: 1)  # a second thread would only wait at these sizes
    config = dataclasses.replace(TINY["E2B"], eos_token_ids=())
    target = restless(random_target(config, seed=5))
    subject = Subject("a tiny pair", target, random_drafter(TINY_DRAFTERS["E2B"]), [])
    peer = Transformers(subject)
    _, text = peer.lap(PROMPTS[0], NEW_TOKENS, GAMMA)
    assert len(text) == NEW_TOKENS and len(set(text.tolist())) > NEW_TOKENS / 3, "too monotonous to show a mistake"
    return compare(subject, peer, PROMPTS, NEW_TOKENS, GAMMA, RUNS)


def test_texts_are_equal(found):
    """Both prompts, without an assistant and with one."""
    assert found["texts"] == found["equal_texts"] == 4


@pytest.mark.parametrize("loop", ["autoregressive", "speculative"])
def test_figures(found, loop):
    pair = found[loop]
    assert pair["runs"] == RUNS * len(PROMPTS)
    for value in (pair["tokens_per_second"], pair["their_tokens_per_second"], pair["ratio"]):
        assert 0 < value < float("inf")
    low, high = pair["ratio_quartiles"]
    assert low <= pair["ratio"] <= high


def test_table(found):
    out = "\n".join(
        lines({"against": {"name": "a tiny pair", "draft_length": GAMMA, "new_tokens": NEW_TOKENS, **found}})
    )
    assert "a tiny pair against transformers 5." in out and "4 of 4 texts equal theirs" in out
