"""Given only wrong tensors, the oracle names the bug, or says that it knows none."""

import dataclasses
import json
from collections.abc import Collection

import numpy as np
import pytest

import gemma4
from decoding.oracle import confusion as confusion_module
from decoding.oracle import diagnose as module
from decoding.oracle import golden
from decoding.oracle.cases import CASES
from decoding.oracle.compare import BEYOND_MEASURE, Report, Result, Status, compare
from decoding.oracle.confusion import noisy
from decoding.oracle.diagnose import diagnose, reference, under
from decoding.oracle.known_bugs import EQUIVALENT, MUTANTS
from decoding.oracle.known_bugs.mutant import Mutant, Variant
from decoding.oracle.known_bugs_page import Verdicts, in_full, print_mutants, verdicts_of
from decoding.oracle.record import record

# From one stage each; `gemma4-mtp oracle mutants --confusion` does it for all (tutorials/reference/known_bugs.md).
SAMPLE = {
    "rope-turns-every-pair": ("E2B", "rope"),
    "shared-layer-reads-its-own-empty-cache": ("E2B", "forward"),
    "double-width-ignored": ("E2B", "forward"),
    "router-reads-the-experts-norm": ("26B-A4B", "forward"),
    "value-is-turned": ("26B-A4B", "forward"),
    "draft-drawn-in-bfloat16": ("E2B", "law"),
    "residual-by-softmax": ("E2B", "accept"),
    "length-tested-before-eos": ("E2B", "emit"),
}


def of_stage(case: str, stage: str, variant: Variant | None = None) -> dict[str, np.ndarray]:
    """With a little noise, as from another engine."""
    rng = np.random.default_rng(0)
    tensors = under(variant, case, stage) if variant else reference(case, stage).tensors
    return {name: noisy(name, value, rng) for name, value in tensors.items()}


def clone(mutant: Mutant, **changes) -> Mutant:
    return dataclasses.replace(mutant, **changes)


SLOW = (
    "shared-layer-reads-its-own-empty-cache",
    "double-width-ignored",
    "router-reads-the-experts-norm",
    "draft-drawn-in-bfloat16",
    "value-is-turned",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in SAMPLE]
)
def test_a_bug_is_named_from_its_tensors(name):
    found = diagnose(of_stage(*SAMPLE[name], MUTANTS[name]))
    [(mutant, evidence)] = found.matches
    assert mutant is MUTANTS[name]
    is_whole = SAMPLE[name][1] in ("accept", "emit")
    assert found.reference.error > (0 if is_whole else 10) and evidence.error < 0.5


def test_the_table_is_made_this_way(monkeypatch):
    """Here from one stage; the table is made from all of them."""
    monkeypatch.setattr(confusion_module, "CHEAP", ("emit",))
    mutant = clone(MUTANTS["length-tested-before-eos"])
    assert {name.split("/")[0] for name in confusion_module.dump_of(mutant)} == set(confusion_module.WITNESSES)
    [outcome] = confusion_module.confusion([mutant])
    assert verdicts_of(outcome._replace(mutant=MUTANTS[mutant.name])) == Verdicts("named", "named")
    nothing = outcome._replace(diagnosis=diagnose(of_stage("E2B", "emit")))
    assert verdicts_of(nothing) == Verdicts("unseen", "named")


def test_the_reference_has_no_bug():
    found = diagnose(of_stage("E2B", "forward", EQUIVALENT["products-rounded-otherwise"]))
    assert not found.matches and not found.partial and not found.reference.off
    assert str(found).startswith("no difference: all ")


def test_an_unknown_bug_matches_nothing():
    theirs = of_stage("E2B", "forward")
    for name, value in theirs.items():
        if name.endswith((".query", ".attention", "logits")):
            theirs[name] = value * np.float32(1.01)
    found = diagnose(theirs)
    assert not found.matches and not found.partial and "no known bug matches" in str(found)


def test_of_two_bugs_the_first_is_named():
    """The tensors follow one mutant up to the point of the second mistake."""
    first, second = MUTANTS["norm-after-rope"], MUTANTS["layer-scalar-dropped"]
    with first.apply(), second.apply():
        theirs = module.computed("E2B", "forward")
    found = diagnose(theirs)
    assert not found.matches
    assert [mutant for mutant, _ in found.partial] == [first]
    assert found.partial[0][1].first == "E2B/forward/layers.0.output"


def test_a_single_tensor_may_be_enough():
    mutant = MUTANTS["softcap-missing"]
    name = "E2B/forward/logits"
    found = diagnose({name: under(mutant, "E2B", "forward")[name]})
    assert [mutant for mutant, _ in found.matches] == [mutant]


def test_mutants_with_the_same_tensors_are_named_together(monkeypatch):
    mutant = MUTANTS["length-tested-before-eos"]
    twin = clone(mutant, name="twin")
    monkeypatch.setitem(module.MUTANTS, "twin", twin)
    found = diagnose(of_stage("E2B", "emit", mutant))
    assert [mutant for mutant, _ in found.matches] == [mutant, twin]


def report_on(names: Collection[str], wrong: Collection[str]) -> Report:
    status = lambda name: Status.DIFFERS if name in wrong else Status.AGREES
    return Report([Result(name, status(name), 1.0) for name in names], theirs=dict.fromkeys(names, np.zeros(1)))


def test_the_report_says_what_was_not_looked_at(monkeypatch):
    """It looks at two cases, the cheap stages and one more.  Only names matter here."""
    looked_at = []
    nothing = module.Evidence(1, 1, 2.0, "E2B/emit/done")
    monkeypatch.setattr(
        module, "diagnose", lambda theirs: looked_at.append(set(theirs)) or module.Diagnosis(nothing, ())
    )
    wrong = [f"{case}/{stage}/x" for case in ("E2B", "12B", "E4B") for stage in ("emit", "rollback", "rounds")]
    found = module.diagnose_report(report_on([*wrong, "E2B/stepwise/x"], wrong))
    assert looked_at == [{"12B/emit/x", "E2B/emit/x"}]
    assert str(found).splitlines()[-1] == "not looked at: rollback, rounds, all of E4B (7 tensors differ there)"
    assert found.as_dict()["not_looked_at"] == {"rollback": 2, "rounds": 2, "all of E4B": 3}
    found = module.diagnose_report(report_on(wrong, wrong[:1]))
    assert "not looked at" not in str(found)


def test_kv_weights_that_no_layer_may_use(tmp_path, monkeypatch):
    """B01 and B02: without a cache, sharing layers compute their own K/V.  Here a configuration without sharing does so."""
    CASES["E4B"].write(tmp_path)
    right = {f"E4B/{name}": x for name, x in record(CASES["E4B"], ["load"], directory=tmp_path, jit=True).items()}
    file = tmp_path / "target_with_unused_kv" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_kv_shared_layers": 0}))
    own = gemma4.forward(gemma4.load(file.parent), CASES["E4B"].inputs()["forward/tokens"]).logits
    alone, logits = "E4B/load/unused_kv.logits", "E4B/load/logits"

    def report(**changes: np.ndarray) -> Report:
        theirs = right | changes
        entries = {name: golden.entry_of(CASES["E4B"], name.split("/", 1)[1], right[name]) for name in right}
        return Report([compare(entries[name], right[name], theirs[name]) for name in right], theirs=theirs)

    found = module.diagnose_report(report(**{alone: np.asarray(own)}))
    assert (found.reference.first, found.reference.off) == (alone, 1) and found.reference.error > 100
    assert "B01 and B02" in str(found) and "no known bug" not in str(found) and found.as_dict()["hint"] in str(found)

    monkeypatch.setattr(module, "diagnose", lambda theirs: module.Diagnosis(found.reference, ()))
    elsewhere_too = module.diagnose_report(report(**{alone: np.asarray(own), logits: right[logits] + 1}))
    assert not elsewhere_too.hint and "no known bug matches" in str(elsewhere_too)
    with_nothing_else = report(**{alone: np.asarray(own)})._replace(theirs={alone: np.asarray(own)})
    assert not module.diagnose_report(with_nothing_else).hint


def test_one_measure_of_error():
    """For whole numbers, how many differ: as `check` prints it."""
    theirs = of_stage("E2B", "emit")
    theirs["E2B/emit/num_emitted"] = theirs["E2B/emit/num_emitted"] + (np.arange(12) < 3)
    found = diagnose(theirs).reference
    assert (found.off, found.error) == (1, 3)
    assert str(found) == "1 of 2 tensors differ, by up to 3 units, first E2B/emit/num_emitted"
    theirs["E2B/emit/num_emitted"] = reference("E2B", "emit").tensors["E2B/emit/num_emitted"] + (np.arange(12) < 1)
    assert diagnose(theirs).reference.off == 1, "one is enough"


def test_nothing_given_is_nothing_to_look_at():
    found = diagnose({})
    assert str(found).startswith("nothing to look at") and not found.matches
    assert found.as_dict()["reference"]["compared"] == 0


def test_load_is_not_the_first_difference():
    assert module.first_of([("E2B", "load"), ("E2B", "draft")]) == ("E2B", "draft")
    assert module.first_of([("E2B", "load")]) == ("E2B", "load")


def test_nan_and_a_wrong_shape_are_differences_not_crashes():
    theirs = of_stage("E2B", "rope")
    name = next(iter(theirs))
    for wrong in (np.full_like(theirs[name], np.nan), theirs[name][:1]):
        found = diagnose(theirs | {name: wrong})
        assert found.reference.off == 1 and found.reference.error == BEYOND_MEASURE and not found.matches


def test_a_mutant_that_crashes_is_no_match():
    crashing = clone(MUTANTS["softcap-missing"], name="crash", change={"hidden @ self": "hidden[..., 1:] @ self"})
    assert under(crashing, "E2B", "forward") == {}


def test_the_report_says_what_a_reader_needs(capsys):
    mutant = MUTANTS["rope-turns-every-pair"]
    text = str(diagnose(of_stage("E2B", "rope", mutant)))
    for part in (
        "matches rope-turns-every-pair (B31)",
        mutant.what,
        f"effect:  {mutant.effect}",
        mutant.fix,
        "mlx-lm https://",
        "all 4 tensors agree",
    ):
        assert part in text
    print_mutants(["rope-turns-every-pair"])
    assert "-     rotating = int(rotary_factor * head_dim // 2)" in capsys.readouterr().out
    print_mutants()
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*MUTANTS, *EQUIVALENT))
    assert in_full("heads-repeated").startswith("heads-repeated, not a bug")
    with pytest.raises(ValueError, match="no mutant is called nonsense"):
        print_mutants(["nonsense"])
