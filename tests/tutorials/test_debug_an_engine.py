"""The pictures of `10_debug_an_engine`: which box is which tensor.  And its patient: a mistake in acceptance is named."""

from pathlib import Path

import numpy as np
import pytest

from decoding.oracle.compare import Report, Result, Status
from decoding.oracle.diagnose import diagnose, reference

TUTORIALS = Path(__file__).parents[2] / "tutorials"


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(TUTORIALS)
    from figures import debug_an_engine

    return debug_an_engine


def report(**statuses: Status) -> Report:
    names = {
        "embedding": "12B/forward/embedding",
        "value": "12B/forward/layers.1.value",
        "layer_norm": "12B/forward/layers.1.input_layernorm",
        "count": "12B/accept/sampled.num_accepted",
        "plain": "acceptance/law/plain",
    }
    return Report([Result(names[name], status, 2.0) for name, status in statuses.items()])


def test_the_frame_is_around_the_first_column_that_differs(figures):
    labels = [label for label, _ in figures.columns(3)]
    both = report(embedding=Status.AGREES, value=Status.DIFFERS, plain=Status.DIFFERS)
    assert labels[figures.first_frame(both)] == "1.value"
    assert labels[figures.first_frame(report(plain=Status.DIFFERS))] == "distribution"
    assert figures.first_frame(report(embedding=Status.AGREES, layer_norm=Status.DIFFERS)) is None, "has no column"


def test_a_box_without_a_tensor_is_neither(figures):
    assert figures.status_of(report(count=Status.AGREES), "accept/*num_accepted") is Status.AGREES
    assert figures.status_of(report(count=Status.AGREES), "law/*") is None
    assert figures.status_of(report(plain=Status.DIFFERS), "accept/*next_token") is None
    (axes,) = figures.grid({"one": report(count=Status.AGREES)}).axes
    assert sorted({text.get_text() for text in axes.texts}) == ["", "?"]


def test_errors_are_those_of_the_pass(figures):
    assert figures.units_of(report(embedding=Status.AGREES, count=Status.DIFFERS)) == {"embedding": 2.0}


def test_a_mistake_in_sampled_acceptance_alone_is_named(monkeypatch, tmp_path):
    """Of the patient's four mistakes, the one that needs no pass."""
    monkeypatch.syspath_prepend(TUTORIALS)
    from sick_engine import SickEngine

    from decoding.oracle.cases import CASES
    from decoding.oracle.record import Recorder

    CASES["12B"].write(tmp_path)
    case = CASES["12B"]
    recorder = Recorder(case, SickEngine(tmp_path / "target"), lambda: None, case.inputs())
    theirs = {f"12B/{name}": value for name, value in recorder.stage("accept").items()}
    assert [mutant.name for mutant, _ in diagnose(theirs).matches] == ["residual-forgotten"]
    right = reference("12B", "accept").tensors
    assert all(np.array_equal(theirs[name], right[name]) for name in right if name.endswith("num_accepted"))
