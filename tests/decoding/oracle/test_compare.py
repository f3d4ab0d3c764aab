"""Comparison of files: what agrees, the first difference, what is missing, and mistakes that are refused in one line."""

import io
import json
import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from decoding.cli import main
from decoding.oracle import compare, golden, table
from decoding.oracle import diagnose as diagnose_module
from decoding.oracle.compare import Status
from decoding.oracle.engine import OracleError
from decoding.oracle.tolerance import Tolerance
from tests.decoding.oracle.conftest import CASE

LOGITS, QUERY = f"{CASE}/forward/logits", f"{CASE}/forward/layers.1.query"


@pytest.fixture(scope="module")
def dump(dump_dir) -> golden.Dump:
    return golden.read_dump(dump_dir)


@pytest.fixture
def theirs(dump) -> dict[str, np.ndarray]:
    return dict(dump.expected(CASE))


@pytest.fixture
def run(dump_dir, tmp_path, theirs, capsys, monkeypatch):
    """`oracle check` on the dump and `theirs`, or on other arguments: (exit code, standard output, standard error)."""
    monkeypatch.setattr(main, "keep_compiled_code", lambda: None)

    def run(*arguments, tensors=theirs):
        if tensors is not None:
            save_file(tensors, tmp_path / "theirs.safetensors")
            arguments = (str(dump_dir), str(tmp_path / "theirs.safetensors"), *arguments)
        code = main.main(["oracle", "check", *arguments])
        return code, *capsys.readouterr()

    return run


# -- results -----------------------------------------------------------------------------------------------------------


def test_what_was_dumped_agrees(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("agrees: ") and "differs" not in out


def test_an_error_is_in_units_and_the_first_divergence_is_named(dump, theirs, run):
    for name, units in ((QUERY, 3.0), (LOGITS, 0.5)):
        theirs[name] = theirs[name].copy()
        theirs[name].flat[5] += units * 1e-4 * np.abs(theirs[name]).max()
    report = compare.check(dump, theirs)
    by_name = {result.name: result for result in report.results}
    assert by_name[QUERY].status is Status.DIFFERS and by_name[QUERY].units == pytest.approx(3, rel=0.01)
    assert by_name[LOGITS].status is Status.AGREES and by_name[LOGITS].units == pytest.approx(0.5, rel=0.01)
    assert report.first_divergence(CASE).name == QUERY
    code, out, _ = run()
    assert code == 1 and f"first divergence in {CASE}: {QUERY}, 3 units" in out
    assert [line for line in out.splitlines() if line.endswith("<- first divergence")][0].split()[0] == "layers.1"


def test_the_first_divergence_is_the_first_computed(dump, theirs):
    theirs = {name: value + np.ones((), value.dtype) for name, value in theirs.items() if "/forward/" in name}
    assert compare.check(dump, theirs).first_divergence(CASE).name == f"{CASE}/forward/embedding"


@pytest.mark.parametrize("stage", ["forward", "draft"])
def test_load_is_the_first_divergence_only_where_other_stages_agree(stage):
    wrong = lambda name: compare.Result(name, Status.DIFFERS, 2.0)
    fine, load, other = compare.Result("C/rope/x", Status.AGREES, 0.0), wrong("C/load/logits"), wrong(f"C/{stage}/x")
    assert compare.Report([load, fine, other]).first_divergence("C") == other
    assert compare.Report([load, fine]).first_divergence("C") == load


def test_a_subset_is_enough_but_not_of_the_results(dump, theirs, run):
    results = {name: theirs[name] for name in (LOGITS, f"{CASE}/forward/hidden")}
    assert compare.check(dump, results, stages=["forward"]).agrees
    code, out, _ = run("--stage", "forward", tensors={LOGITS: theirs[LOGITS]})
    assert code == 1 and "1 missing, e.g. 12B/forward/hidden" in out and "incomplete: " in out
    code, out, _ = run(tensors=results)  # other stages were dumped
    assert code == 1 and "incomplete: " in out


def test_whole_numbers_are_equal_or_not(dump, theirs):
    name = f"{CASE}/accept/greedy.num_accepted"
    theirs[name] = theirs[name].astype(np.int64)
    assert compare.check(dump, theirs).agrees
    theirs[name][:2] += 1
    (found,) = [result for result in compare.check(dump, theirs).results if result.status is Status.DIFFERS]
    assert (found.name, found.units) == (name, 2)


def test_json(run, theirs):
    theirs[LOGITS] = theirs[LOGITS] + 1
    code, out, err = run("--json")
    report = json.loads(out)
    assert (code, err, report["agrees"]) == (1, "", False)
    assert report["first_divergence"] == {CASE: LOGITS}
    assert {stage["stage"]: stage["verdict"] for stage in report["stages"]}["forward"] == "differs"
    (wrong,) = [tensor for tensor in report["tensors"] if tensor["status"] == "differs"]
    assert wrong["name"] == LOGITS and wrong["units"] > 1 and "expected" in wrong["note"]


def entry(rule: str, shape: tuple[int, ...], lengths: tuple[int, ...] | None = None) -> golden.Entry:
    return golden.Entry("C/draft/step0/logits", shape, "float32", Tolerance(rule, 1e-4, ""), True, lengths)


@pytest.mark.parametrize(
    "fill, agrees", [(-np.inf, True), (-1e30, True), (0.99, True), (1.0, False), (1.5, False), (9.0, False)]
)
def test_unscored_tokens_may_have_any_logit_below_the_scored_ones(fill, agrees):
    expected = np.float32([[1, -np.inf, 3]])
    result = compare.compare(entry("clustered", (1, 3)), expected, np.float32([[1, fill, 3]]))
    assert (result.status is Status.AGREES) is agrees


def test_a_scored_token_that_is_unscored_differs():
    result = compare.compare(entry("clustered", (1, 2)), np.float32([[1, 3]]), np.float32([[1, -np.inf]]))
    assert result.status is Status.DIFFERS


def test_nothing_is_compared_past_the_end_of_a_row():
    expected, theirs = np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    theirs[0, 2:], theirs[1, 1:] = 9, 9
    assert compare.compare(entry("relative", (2, 3, 4), (2, 1)), expected, theirs).status is Status.AGREES
    theirs[1, 0, 0] = 9
    assert compare.compare(entry("relative", (2, 3, 4), (2, 1)), expected, theirs).status is Status.DIFFERS


def test_every_layer_has_a_line_on_demand(run):
    few, many = (run(*arguments)[1].splitlines() for arguments in ((), ("--every-layer",)))
    assert len(few) < 15 < len(many) and any(line.split()[:1] == ["layers.2"] for line in many)


def test_the_diagnosis_follows_the_table_and_gets_the_compared_tensors(run, theirs, monkeypatch):
    """The table is printed before the diagnosis, which takes minutes, begins."""
    shown, asked = io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", shown)

    def diagnose(report):
        asked.append((shown.getvalue(), set(report.theirs)))
        return "the diagnosis"

    monkeypatch.setattr(diagnose_module, "diagnose_report", diagnose)
    theirs[LOGITS] = theirs[LOGITS] + 1
    assert run("--diagnose", "--stage", "forward", "--stage", "rope")[0] == 1
    [(before, given)] = asked
    assert before.splitlines()[-1].startswith("differs: ") and shown.getvalue().endswith("\n\nthe diagnosis\n")
    assert {name.split("/")[1] for name in given} == {"forward", "rope"}


# -- mistakes: exit code 2, one line -----------------------------------------------------------------------------------


def broken(theirs, name=LOGITS, **change):
    return theirs | {name: change["to"](theirs[name])}


MISTAKES = {
    "a name that is not there": (lambda t: t | {f"{CASE}/forward/logit": t[LOGITS]}, f"nearest: {LOGITS}"),
    "another shape": (lambda t: broken(t, to=lambda x: x[:, :-1].copy()), "has shape .*, expected"),
    "whole numbers for floats": (lambda t: broken(t, to=lambda x: x.astype(np.int32)), "expected floating-point"),
    "complex numbers": (
        lambda t: broken(t, to=lambda x: x + np.complex64(1j)),
        "is complex64, expected floating-point",
    ),
    "NaN": (lambda t: broken(t, to=lambda x: np.where(x == x.max(), np.nan, x)), f"{LOGITS} is NaN at 1 of"),
    "floats for whole numbers": (
        lambda t: broken(t, f"{CASE}/emit/done", to=lambda x: x.astype(np.float32)),
        "expected whole numbers",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_tensors_are_refused(mistake, run, theirs):
    change, message = MISTAKES[mistake]
    code, out, err = run(tensors=change(theirs))
    assert (code, out) == (2, "") and err.startswith("gemma4-mtp: error:") and err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "got neither"),
        (("{dump}",), "got neither"),
        (("{dump}", "{tmp}/none.safetensors"), "no such file or directory"),
        (("{dump}", "{tmp}"), r"no \*.safetensors in it"),
        (("{tmp}/none", "{tmp}"), "no such directory"),
        (("{tmp}", "{dump}"), "not a dump"),
        (("{dump}", "{tmp}", "--case", "7B"), "--case 7B: expected one of E2B"),
        (("{dump}", "{dump}/12B/inputs.safetensors"), "no tensor 12B/"),
        (("{dump}", "{dump}/12B/expected.safetensors", "--case", "E2B"), "--case E2B: expected one of 12B"),
        (("{dump}", "{dump}/12B/expected.safetensors", "--stage", "load"), "holds nothing that was asked for"),
        (("{dump}", "{dump}/12B/expected.safetensors", "--stage", "no"), "--stage no: expected one of load"),
        (("{dump}", "{dump}/manifest.json"), "not a complete safetensors file"),
        (("{tmp}/" + "x" * 300, "{tmp}"), "x: cannot be read .*too long"),
        (("{dump}", "{tmp}/" + "x" * 300), "x: cannot be read .*too long"),
        (("{dump}", "--adapter", "nothing"), "expected module:function"),
        (("{dump}", "--adapter", "no_such_module:load"), "cannot import no_such_module"),
        (("{dump}", "--adapter", "decoding.oracle.tiny:load"), "has no function load"),
        (("{dump}", "{tmp}", "--adapter", "decoding.oracle.adapters.ours:load"), "got both"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, run, dump_dir, tmp_path):
    code, out, err = run(*(a.format(dump=dump_dir, tmp=tmp_path) for a in arguments), tensors=None)
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(message, err), err


def test_a_truncated_file_is_refused(run, dump_dir, tmp_path, theirs):
    save_file(theirs, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    for size in (len(whole) - 1, 100, 4, 0):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        code, out, err = run(str(dump_dir), str(tmp_path / "cut.safetensors"), tensors=None)
        assert (code, out) == (2, "") and "not a complete safetensors file" in err and err.count("\n") == 1


def test_a_directory_of_files_is_one(dump, theirs, tmp_path):
    for i, (name, value) in enumerate(theirs.items()):
        save_file({name: value}, tmp_path / f"{i % 3}.safetensors") if i < 3 else None
    assert len(compare.read_theirs(tmp_path)) == 3
    save_file(load_file(tmp_path / "0.safetensors"), tmp_path / "twice.safetensors")
    with pytest.raises(OracleError, match="give each tensor once"):
        compare.read_theirs(tmp_path)


def test_no_tensor_is_left_out_of_the_table(dump, theirs):
    report = compare.check(dump, theirs)
    assert {result.name for result in report.results} == set(theirs)
    assert len(list(table.lines(report))) == len({(r.case, r.stage) for r in report.results}) + 3
