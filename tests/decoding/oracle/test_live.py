"""Live checks: our own adapter agrees, wrong engines differ where they are wrong, unfit adapters are refused."""

import dataclasses
import functools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import gemma4
from decoding.cli import main
from decoding.oracle import golden, law_check, live
from decoding.oracle.adapters import ours
from decoding.oracle.cases import CASES
from decoding.oracle.compare import Report, Status
from decoding.oracle.diagnose import diagnose_report
from decoding.oracle.engine import FUNCTIONS, DraftBlock, Engine, OracleError
from decoding.oracle.known_bugs import MUTANTS
from decoding.oracle.law_check import SETTINGS, TOLERANCE, distances
from tests.decoding.oracle.conftest import CASE, STAGES

QUICK = ("forward", "draft", "emit")


@pytest.fixture(scope="module")
def dump(dump_dir) -> golden.Dump:
    return golden.read_dump(dump_dir)


@pytest.fixture
def check(dump, monkeypatch):
    """The report on an adapter whose engine is a `kind`, or whose `load` is `kind`."""

    def check(kind=ours.Ours, stages=QUICK, dump=dump, **settings) -> Report:
        module = types.ModuleType("an_adapter")
        module.load = lambda *args: from_ours(kind, ours.load(*args)) if isinstance(kind, type) else kind(*args)
        monkeypatch.setitem(sys.modules, "an_adapter", module)
        monkeypatch.setattr(live, "distances", lambda engine: {})
        return live.check_adapter(dump, "an_adapter:load", stages=stages, **settings)

    return check


def from_ours(kind: type[ours.Ours], engine: ours.Ours) -> ours.Ours:
    return kind(engine.target, engine.draft_model)


def differing(report: Report) -> list[str]:
    return [result.name for result in report.results if result.status is Status.DIFFERS]


def test_ours_offers_everything():
    assert vars(ours.Ours).keys() >= set(FUNCTIONS) and issubclass(ours.Ours, Engine)


def test_ours_is_the_plain_reference(dump):
    """Its models have no twins of `fast`, and neither have those of the cases, which expected tensors come from."""
    opened = ours.load(dump.directory / CASE / "target", dump.directory / CASE / "drafter", "transformers")
    models = (opened.target, opened.draft_model, CASES[CASE].target(), CASES[CASE].draft_model())
    homes = {
        type(node).__module__ for model in models for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)
    }
    assert {"gemma4.model", "gemma4.layers", "drafter.model"} <= homes
    assert not [home for home in homes if ".fast" in home]


def test_ours_agrees(dump):
    seen = []
    report = live.check_adapter(dump, "decoding.oracle.adapters.ours:load", on_stage=seen.append)
    assert report.agrees and not report.notes
    assert seen == [*(f"{CASE}/{stage}" for stage in STAGES), *live.LAWS.values()]
    assert {result.name for result in report.results if result.case == "acceptance"} == {
        f"{law}/{setting}" for law in live.LAWS.values() for setting in SETTINGS
    }
    worst = max(result.units for result in report.results if result.units is not None)
    assert worst <= 0.5, "the distribution is off by the grid only, all else by nothing"


# -- wrong engines: the wrong stage differs, and no other ----------------------------------------------------------------


class DoubleHidden(ours.Ours):
    def draft_step(self, shared, token, hidden):
        return super().draft_step(shared, token, 2 * hidden)


class ClaimedUniform(ours.Ours):
    def draft(self, *args):
        block = super().draft(*args)
        return DraftBlock(block.tokens, np.full_like(block.claimed, 1 / block.claimed.shape[-1]))


class LateEnd(ours.Ours):
    def emitted(self, tokens, num_tokens, room, eos_ids):
        return super().emitted(tokens, num_tokens, room, ())


class NoCap(ours.Ours):
    def forward(self, tokens):
        out = super().forward(tokens)
        return out | {"logits": np.arctanh(out["logits"] / 30) * 30}


@pytest.mark.parametrize(
    "kind, first, stages",
    [
        pytest.param(DoubleHidden, "draft/step0/pre_projection", {"draft"}, marks=pytest.mark.slow),
        (ClaimedUniform, "draft/block/told", {"draft"}),
        (LateEnd, "emit/num_emitted", {"emit"}),
        (NoCap, "forward/logits", {"forward"}),
    ],
)
def test_a_wrong_engine_differs_where_it_is_wrong(check, kind, first, stages):
    report = check(kind)
    assert not report.agrees and {name.split("/")[1] for name in differing(report)} == stages
    assert report.first_divergence(CASE).name == f"{CASE}/{first}"


def test_the_text_of_an_engine_that_claims_another_distribution_than_it_draws_from(dump):
    """Greedy drafts claimed as softmax of their logits, as in transformers 5.22.2 and KerasHub 0.32: sampled text is biased."""

    class Greedy(ours.Ours):
        def draft_probs(self, logits, settings):
            one_hot = np.eye(logits.shape[-1], dtype=np.float32)[logits.argmax(axis=-1)]
            settings = dataclasses.replace(settings, temperature=settings.temperature or 1.0)
            return one_hot, self.token_probs(logits, settings)

    engine = ours.load(dump.directory / CASE / "target", dump.directory / CASE / "drafter", "transformers")
    found = distances(Greedy(engine.target, engine.draft_model), drafters=("unrelated",))
    assert found["plain"] > 0.01 and found["greedy drafts"] > 0.01
    assert found["both greedy"] <= TOLERANCE, "greedy text does not depend on the claim"


def test_the_text_of_an_engine_that_offers_token_by_token_acceptance_as_block_verification(dump):
    class OneByOne(ours.Ours):
        def accept_block(self, *args):
            return self.accept(*args)

    engine = ours.load(dump.directory / CASE / "target", dump.directory / CASE / "drafter", "transformers")
    assert (
        distances(OneByOne(engine.target, engine.draft_model), by_block=True, drafters=("unrelated",))["plain"] > 0.01
    )
    with MUTANTS["block-residual-without-the-weight"].apply():  # one method's acceptance with the other's residual
        assert distances(from_ours(ours.Ours, engine), by_block=True, drafters=("close",))["plain"] > 1000 * TOLERANCE


# -- what an adapter may leave out ---------------------------------------------------------------------------------------


class NoEmission(ours.Ours):
    def emitted(self, *args):
        raise NotImplementedError("the loop is elsewhere")


def test_a_function_that_is_not_offered_counts_as_missing_if_its_stage_was_asked_for(check):
    report = check(NoEmission)
    assert report.notes == (f"{CASE}/emit: not offered (the loop is elsewhere)",)
    assert not report.agrees and [r.name for r in report.results if r.status is Status.MISSING] == [
        f"{CASE}/emit/num_emitted",
        f"{CASE}/emit/done",
    ]
    assert check(NoEmission, stages=("forward",)).agrees


def test_the_adapter_on_the_page(dump, monkeypatch):
    """Its one method is checked; the others count as not offered, and nothing else is missing."""
    file = Path(__file__).parents[3] / "tutorials" / "reference" / "oracle_format.md"
    page = file.read_text(encoding="utf-8")
    (source,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    my_engine = types.SimpleNamespace(load=lambda directory: functools.partial(both_outputs, gemma4.load(directory)))
    module = types.ModuleType("mine")
    module.my_engine = my_engine
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "mine", module)
    report = live.check_adapter(dump, "mine:load", stages=("forward",))
    assert report.agrees and not report.notes
    assert [r.name for r in report.results if r.status is Status.AGREES] == [
        f"{CASE}/forward/hidden",
        f"{CASE}/forward/logits",
    ]
    report = live.check_adapter(dump, "mine:load", stages=("forward", "rope", "emit"))
    assert report.notes == (f"{CASE}/rope: not offered", f"{CASE}/emit: not offered") and not report.agrees


def both_outputs(target, tokens):
    out = gemma4.forward(target, tokens)
    return np.asarray(out.logits), np.asarray(out.hidden)


def test_a_convention_that_is_refused_is_noted(check):
    def load(*args):
        raise NotImplementedError("another convention")

    with pytest.raises(OracleError, match="offers nothing.*another convention"):
        check(load)


class NoAcceptance(ours.Ours):
    def accept(self, *args):
        raise NotImplementedError("acceptance is elsewhere")


def test_an_engine_that_offers_no_acceptance_is_noted(dump, monkeypatch):
    module = types.ModuleType("an_adapter")
    module.load = lambda *args: from_ours(NoAcceptance, ours.load(*args))
    monkeypatch.setitem(sys.modules, "an_adapter", module)
    report = live.check_adapter(dump, "an_adapter:load", stages=("accept", "emit"))
    assert report.notes == tuple(
        f"{what} not offered (acceptance is elsewhere)"
        for what in (f"{CASE}/accept: accept is", f"{live.LAWS['accept']}:")
    )


class SampledOnly(Engine):
    """Offers acceptance of sampled drafts, and nothing else."""

    def accept(self, target_probs, drafts, draft_probs, uniforms):
        return ours.Ours.accept(self, target_probs, drafts, draft_probs, uniforms)


class Impatient(SampledOnly):
    """Accepts every draft."""

    def accept(self, target_probs, drafts, draft_probs, uniforms):
        return super().accept(target_probs, drafts, 0 * draft_probs, uniforms)


def test_a_stage_may_be_offered_in_part(dump):
    report = live.check_engine(dump, lambda *args: SampledOnly(), stages=("accept", "law"))
    assert report.notes == (
        f"{CASE}/law: not offered",
        f"{CASE}/accept: accept_greedy is not offered",
        f"{live.LAWS['accept']}: not offered",
    )
    by_status = {status: {r.name for r in report.results if r.status is status} for status in Status}
    assert by_status[Status.AGREES] == {
        f"{CASE}/accept/{kind}.{what}" for kind in ("sampled", "one_hot") for what in ("num_accepted", "next_token")
    }
    assert by_status[Status.MISSING] >= {f"{CASE}/accept/greedy.num_accepted"} and not by_status[Status.DIFFERS]


def test_the_part_that_is_offered_is_diagnosed(dump_dir, tmp_path, capsys, monkeypatch):
    """The other part is not offered, and neither is what the enumeration needs."""
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("in_part")
    module.load = lambda *args: Impatient()
    monkeypatch.setitem(sys.modules, "in_part", module)
    assert (
        main.main(["oracle", "check", str(dump_dir), "--adapter", "in_part:load", "--stage", "accept", "--diagnose"])
        == 1
    )
    printed = capsys.readouterr().out
    assert f"first divergence in {CASE}: {CASE}/accept/sampled.num_accepted" in printed
    assert "no known bug matches" in printed


class LawOnly(ours.Ours):
    """The enumeration can run, but no tensor of acceptance is there: its one stage that was asked for is refused."""

    def accept(self, target_probs, drafts, draft_probs, uniforms):
        if target_probs.shape[-1] != law_check.VOCAB:
            raise NotImplementedError("only for the enumeration")
        return super().accept(target_probs, drafts, 0 * draft_probs, uniforms)

    def accept_greedy(self, *args):
        raise NotImplementedError


def test_where_only_the_enumeration_differs_there_is_nothing_to_look_at(dump, monkeypatch):
    report = live.check_engine(dump, lambda *args: from_ours(LawOnly, ours.load(*args)), stages=("accept",))
    assert differing(report) and not report.theirs
    assert str(diagnose_report(report)).startswith("nothing to look at")


class OtherName(ours.Ours):
    def forward(self, tokens):
        taps = super().forward(tokens)
        return {"logitz": taps["logits"], "hidden": taps["hidden"]}


def test_a_tap_that_the_dump_lacks_is_noted(check):
    report = check(OtherName, stages=("forward",))
    assert report.notes == (f"{CASE}/forward: not compared, because the dump lacks it: logitz",)
    assert [r.name for r in report.results if r.status is Status.MISSING] == [f"{CASE}/forward/logits"]


class ExtraRound(ours.Ours):
    def rounds(self, prompts, *args):
        of_rows = lambda *shape: np.zeros((len(prompts), *shape), np.int32)
        sizes = {"own_drafts": (4,), "tokens": (5,), "num_emitted": (), "hidden": (24,), "length": ()}
        return [{name: of_rows(*size) for name, size in sizes.items()}] * 2


def test_a_round_too_many_is_an_error(check, dump):
    entry = dump.entries[f"{CASE}/emit/done"]._replace(name=f"{CASE}/rounds/round0/length")
    with pytest.raises(OracleError, match="no tensor 12B/rounds/.*nearest: 12B/rounds/round0/length"):
        check(ExtraRound, dump=dump._replace(entries={entry.name: entry}), stages=("rounds",))


class AllTaps(ours.Ours):
    def verify(self, cache, token, drafts):
        before = cache.cache.length
        taps, after = self._extend(cache.cache, np.concatenate([token[:, None], drafts], axis=1))
        return taps, ours.Written(after, before)


def test_verify_may_show_every_tap(check, tmp_path):
    golden.dump(tmp_path / "dump", [CASE], ["verify"])
    report = check(AllTaps, dump=golden.read_dump(tmp_path / "dump"), stages=("verify",))
    assert report.agrees and not report.notes and len(report.results) == 2


# -- unfit adapters: one error -------------------------------------------------------------------------------------------


class Raises(ours.Ours):
    def forward(self, tokens):
        raise KeyError("lm_head")


class WrongShape(ours.Ours):
    def forward(self, tokens):
        return {"logits": super().forward(tokens)["logits"][0], "hidden": super().forward(tokens)["hidden"]}


class NotANumber(ours.Ours):
    def forward(self, tokens):
        return {name: value * np.float32(np.nan) for name, value in super().forward(tokens).items()}


class Leaves(ours.Ours):
    def forward(self, tokens):
        sys.exit(0)


def lacks_two(*args):
    engine = types.SimpleNamespace(**{name: None for name in FUNCTIONS})
    for name in set(FUNCTIONS) - {"share", "accept"}:
        setattr(engine, name, lambda *args: None)
    return engine


def cannot_open(*args):
    raise gemma4.CheckpointError("no weights here")


@pytest.mark.parametrize(
    "kind, message",
    [
        (Raises, r"12B, stage forward failed at .*test_live.py:\d+ \(KeyError: 'lm_head'\)"),
        (WrongShape, r"12B/forward/logits has shape \[19, 64\], expected \[4, 19, 64\]"),
        (NotANumber, "is NaN at"),
        (Leaves, r"12B, stage forward failed at .*test_live.py:\d+ \(SystemExit: 0\)"),
        (lacks_two, "lacks share, accept"),
        (cannot_open, "load failed at .*no weights here"),
    ],
)
def test_an_unfit_adapter_is_refused(check, kind, message):
    with pytest.raises(OracleError, match=message):
        check(kind)


def test_an_adapter_imports_installed_packages(tmp_path, monkeypatch):
    """Not files of their names in the working directory, where the adapter itself may be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    (tmp_path / "wave.py").write_text("raise RuntimeError('this is not the package')")
    (tmp_path / "my_adapter.py").write_text("import wave\ndef load(*args): return wave.__file__\n")
    before = list(sys.path)
    assert str(tmp_path) not in live.find("my_adapter:load")(tmp_path, tmp_path, "")
    assert sys.path == before


def test_the_command_runs_an_adapter_from_the_working_directory(dump_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)
    monkeypatch.chdir(tmp_path)
    source = "from decoding.oracle.adapters.ours import load\ndef broken(*args): raise OSError('disk')\n"
    (tmp_path / "leaves_for_the_oracle.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "mine_for_the_oracle.py").write_text(source)
    arguments = ["oracle", "check", str(dump_dir), "--stage", "rope", "--stage", "emit", "--adapter"]
    assert main.main([*arguments, "mine_for_the_oracle:load"]) == 0
    assert "agrees: " in capsys.readouterr().out
    assert main.main([*arguments, "mine_for_the_oracle:broken"]) == 2
    assert "disk" in capsys.readouterr().err
    assert main.main([*arguments, "leaves_for_the_oracle:load"]) == 2
    assert "cannot import leaves_for_the_oracle (SystemExit: 0)" in capsys.readouterr().err
