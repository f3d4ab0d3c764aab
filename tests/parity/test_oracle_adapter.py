"""transformers 5.22.2 through the oracle: its known differences are found, and all else agrees, in all five layouts."""

import numpy as np
import pytest

from decoding.oracle import golden, live
from decoding.oracle.adapters import hf
from decoding.oracle.cases import CASES, GAMMA
from decoding.oracle.compare import Status
from decoding.oracle.law_check import TOLERANCE, distances
from decoding.oracle.record import STAGES, recorder
from decoding.oracle.tiny import TINY

pytestmark = pytest.mark.slow

SPEC = "decoding.oracle.adapters.hf:load"
CLAIMED = "draft/block/told"  # softmax of the logits of a draft that is their argmax


EVERY_STAGE = "31B"  # one layout runs all of them, the others those that tell layouts apart: each takes half a minute


@pytest.fixture(scope="module", params=TINY)
def dump(request, tmp_path_factory) -> golden.Dump:
    directory = tmp_path_factory.mktemp("oracle") / "dump"
    stages = tuple(STAGES) if request.param == EVERY_STAGE else ("forward", "draft", "rollback")
    golden.dump(directory, [request.param], stages)
    return golden.read_dump(directory)


@pytest.fixture(scope="module")
def differing(dump) -> set[str]:
    """Names, without the case, of what differs; the distribution of sampled text has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "distances", lambda engine, **settings: {})
        report = live.check_adapter(dump, SPEC)
    assert not [result for result in report.results if result.status is Status.MISSING]
    return {result.name.split("/", 1)[1] for result in report.results if result.status is Status.DIFFERS}


def test_only_what_is_known_differs(differing):
    """Drafts after a partial acceptance, because a rejected position is visible then; and the distribution claimed for them."""
    after_rejection = {f"rollback/round{i}/draft.{what}" for i in range(6) for what in ("logits", "post_projection")}
    known = {CLAIMED, *after_rejection}
    assert CLAIMED in differing and differing & after_rejection
    assert {name for name in differing - known if not name.endswith("/own_drafts")} == set()
    assert "rounds/round0/own_drafts" not in differing, "nothing has been rejected yet"


@pytest.mark.parametrize("dump", [EVERY_STAGE], indirect=True)
def test_its_own_loop_drafts_differently_after_a_rejection(differing):
    assert {name for name in differing if name.startswith("rounds/")}


def test_its_drafter_sees_a_rejected_position(dump):
    """Rows whose drafts were all accepted agree in the first round; all others do not."""
    (case,) = dump.manifest["cases"]
    this = recorder(case, load=hf.load, directory=dump.directory / case)
    ours, kept = dump.expected(case), CASES[case].inputs()["rollback/kept"][0]
    theirs = this.stage("rollback")
    name = "rollback/round0/draft.post_projection"
    expected = ours[f"{case}/{name}"]
    apart = np.abs(theirs[name] - expected).max(axis=-1) / np.abs(expected).max()
    assert (apart[kept == GAMMA + 1] <= 1e-4).all() and (apart[kept <= GAMMA] > 1e-3).all()


def test_sampled_text_has_another_distribution(tmp_path):
    """gamma = 1: at least a thousand times as far as the enumeration allows; not at all where the target is greedy."""
    CASES["12B"].write(tmp_path)
    found = distances(hf.load(tmp_path / "target", tmp_path / "drafter", "transformers"), 1, ("unrelated",))
    greedy = {"greedy target", "both greedy"}
    assert all(distance <= TOLERANCE for name, distance in found.items() if name in greedy)
    assert all(distance > 1000 * TOLERANCE for name, distance in found.items() if name not in greedy), found


def test_the_other_convention_is_not_offered(tmp_path):
    with pytest.raises(NotImplementedError):
        hf.load(tmp_path, tmp_path, "vllm")
