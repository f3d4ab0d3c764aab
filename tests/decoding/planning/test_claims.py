"""The page of published speed-ups is what the command prints, and each prediction follows from the model alone."""

from pathlib import Path

import pytest

from decoding.bench.work import Storage
from decoding.cli.main import main
from decoding.planning.claims import PARTS, Claim, needed_rate, predict, with_tokens

PAGE = Path(__file__).parents[3] / "tutorials" / "reference" / "claims.md"


def test_the_page_is_what_the_command_prints(capsys):
    """If it fails: gemma4-mtp plan --claims > tutorials/reference/claims.md"""
    assert main(["plan", "--claims"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_claims_and_says_what_explains_them(part):
    title, *entries = part()
    assert title.startswith("## ") and isinstance(entries[-1], str)
    claims = [entry for entry in entries if isinstance(entry, Claim)]
    assert claims and all(claim.published and claim.predicted for claim in claims)


def test_needed_acceptance_gives_the_speed_up():
    found = predict("31B", "h200", Storage(), gamma=(3, 5))
    rate = needed_rate(found, 5, 2.5)
    assert rate is not None
    assert with_tokens(found, 5, sum(rate**i for i in range(6))) == pytest.approx(2.5, rel=1e-4)
    assert needed_rate(found, 3, 4.5) is None, "three drafts give four tokens at most"


def test_bandwidth_alone_bounds_a_baseline():
    """31B in 8.5 bits at 1 TB/s: at least 32.6 GB a token, so fewer than 30.7 tokens a second."""
    found = predict("31B", "rtx-4090", Storage(8.5, 16), gamma=(1,))
    assert 0.95 * 1.008e12 / 32.62e9 < found["autoregressive_tokens_per_second"] < 1.008e12 / 32.62e9


def test_claims_are_a_page_of_their_own(capsys):
    assert main(["plan", "E2B", "--claims"]) == 2
    assert "--claims: prints a page of its own" in capsys.readouterr().err
