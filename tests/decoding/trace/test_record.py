"""What is recorded: rounds as the program runs them, and numbers that lead to what it did."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import decoding
from decoding.stages.accept import decide
from decoding.trace import record as recording
from decoding.trace.check import check_trace
from decoding.trace.record import RoundsDiffer
from tests.decoding.trace.conftest import GAMMA, KINDS, LENGTH, PROMPT, recorded, recorded_pair
from tests.models import SMALL_WINDOW, small_drafter, small_target


def test_the_text_is_that_of_the_plain_loop(kind):
    options, seed = KINDS[kind]
    trace, _ = recorded(kind)
    settings = {field: getattr(options, field) for field in ("sampling", "draft_sampling", "acceptance", "eos_ids")}
    expected = decoding.generate(
        small_target(), small_drafter(), PROMPT, max_new_tokens=LENGTH, draft_length=GAMMA, key=jax.random.key(seed),
        loop="plain", **settings,
    )  # fmt: skip
    assert trace["text"]["ids"] == expected.tokens[0].tolist()
    assert len(trace["rounds"]) == expected.stats.rounds > 2
    counts = [sum(d["emitted"] for d in r["drafts"]) for r in trace["rounds"]]
    assert sum(counts) == expected.stats.accepted > 0


def test_the_trace_follows_the_schema(kind):
    check_trace(recorded(kind)[0])


def test_the_schema_holds_for_a_clustered_head_and_a_tokenizer(pair_dir):
    trace = recorded_pair(pair_dir)
    check_trace(trace)
    head = trace["model"]["head"]
    assert (head["clusters"], head["size"], head["searched"]) == (4, 80, 2)
    for described in trace["rounds"]:
        for place, drafted in zip(described["places"], described["drafts"], strict=False):
            searched = {cluster for cluster, _ in drafted["clusters"]}
            scores = [score for _, score in drafted["clusters"]]
            assert len(searched) == 2 and scores == sorted(scores, reverse=True)
            # The drafter gives probability to tokens of these clusters alone, and the target reaches what is listed there.
            listed = {token: head["cluster_of"][str(token)] in searched for token, *_ in place["tokens"]}
            assert all(listed[token] for token, _, q, *_ in place["tokens"] if q > 0)
            p_listed = sum(p for token, p, *_ in place["tokens"] if listed[token])
            assert p_listed - 1e-6 <= drafted["reach"] <= p_listed + place["rest"]["p"] + 1e-6
    assert any(0 < d["reach"] < 0.99 for r in trace["rounds"] for d in r["drafts"])
    assert "<0x" in "".join(trace["vocabulary"].values()) and " the" in trace["vocabulary"].values()


def test_places_add_up(kind):
    trace, arrays = recorded(kind)
    for described, (p, drafts, q, _) in zip(trace["rounds"], arrays, strict=True):
        q = np.concatenate([q, np.zeros_like(q[:1])])
        for i, place in enumerate(described["places"]):
            columns = np.array([row[1:] for row in place["tokens"]]).sum(axis=0)
            rest = place["rest"]
            assert math.isclose(columns[0] + rest["p"], 1, abs_tol=1e-5)
            assert math.isclose(columns[1] + rest["q"], 1 if i < GAMMA else 0, abs_tol=1e-5)
            assert math.isclose(columns[2] + rest["residual"], place["residual_sum"], abs_tol=1e-5)
            shared = sum(min(row[1], row[2]) for row in place["tokens"]) + rest["min"]
            assert math.isclose(shared, np.minimum(p[i], q[i]).sum(), abs_tol=1e-5)
            swapped = q[i] * np.minimum(1, q[i] / np.maximum(p[i], 1e-30))
            listed = [row[0] for row in place["tokens"]]
            assert math.isclose(rest["swapped"], np.delete(swapped, listed).sum(), abs_tol=1e-5)
            assert i == GAMMA or int(drafts[i]) in listed
            for token, _, _, residual, residual_before, p_before in place["tokens"]:
                assert math.isclose(p_before, p[i, :token].sum(), abs_tol=1e-5)
                assert residual >= 0 and residual_before <= place["residual_sum"] + 1e-6


def draws(trace):
    yield trace["prompt"]["next"]
    for described in trace["rounds"]:
        yield from (drafted["draw"] for drafted in described["drafts"])
        yield described["next"]


def test_random_numbers_lead_to_the_tokens(kind):
    trace, _ = recorded(kind)
    found = list(draws(trace))
    assert len({draw["u"] for draw in found}) == (1 if kind == "greedy" else len({d["u"] for d in found}))
    for draw in found:
        if draw["u"] is None:
            assert draw["after"] > draw["before"]
        else:
            assert draw["before"] - 1e-5 <= draw["u"] * draw["sum"] < draw["after"] + 1e-5
    sampled = sum(draw["u"] is not None for draw in found)
    drafts = GAMMA * len(trace["rounds"])
    assert sampled == {"greedy": 0, "greedy drafts": len(found) - drafts}.get(kind, len(found))


@pytest.mark.parametrize("kind", ["token", "cut", "greedy drafts"])
def test_verdicts_follow_from_p_q_and_u(kind):
    trace, _ = recorded(kind)
    seen = set()
    for described in trace["rounds"]:
        is_open = True
        for drafted in described["drafts"]:
            is_accepted = drafted["u"] * drafted["q"] < drafted["p"]
            expected = "not looked at" if not is_open else "accepted" if is_accepted else "rejected"
            assert drafted["verdict"] == expected
            is_open = is_open and is_accepted
            seen.add(expected)
    assert seen == {"accepted", "rejected", "not looked at"}


def test_runs_by_block_follow_from_w_s_and_u():
    trace, arrays = recorded("block")
    for described, (p, drafts, q, _) in zip(trace["rounds"], arrays, strict=True):
        weight = 1.0
        for i, drafted in enumerate(described["drafts"]):
            weight = min(1.0, weight * p[i, drafts[i]] / q[i, drafts[i]])
            q_next = q[i + 1] if i + 1 < GAMMA else np.zeros_like(q[0])
            assert math.isclose(drafted["weight"], weight, rel_tol=1e-4)
            assert math.isclose(
                drafted["surplus"], np.maximum(weight * p[i + 1] - q_next, 0).sum(), rel_tol=1e-3, abs_tol=1e-6
            )
        holds = [d["u"] * (d["surplus"] + 1 - d["weight"]) < d["surplus"] for d in described["drafts"]]
        assert described["num_accepted"] == max([i + 1 for i, held in enumerate(holds) if held], default=0)
    # Somewhere a run is accepted although a shorter one is not: what only this rule does.
    assert any(
        drafted["u"] * (drafted["surplus"] + 1 - drafted["weight"]) >= drafted["surplus"]
        for described in trace["rounds"]
        for drafted in described["drafts"][: described["num_accepted"]]
    )


def test_a_text_ends_inside_a_round():
    trace, _ = recorded("eos")
    (eos,) = KINDS["eos"][0].eos_ids
    last = trace["rounds"][-1]
    assert trace["text"]["ended_by"] == "eos" and trace["text"]["ids"].index(eos) == len(trace["text"]["ids"]) - 1
    assert len(trace["text"]["ids"]) < LENGTH and 1 < last["num_emitted"] <= last["num_accepted"]
    assert [drafted["emitted"] for drafted in last["drafts"]] == [True, True, False]
    assert recorded("token")[0]["text"]["ended_by"] == "budget"


def test_a_budget_ends_a_round():
    """The last round accepts drafts that it does not emit, for some length of the text."""
    options, seed = KINDS["token"]
    found = []
    for length in (2, 3, 4):
        trace = recording.record(
            small_target(), small_drafter(), None, PROMPT, options, max_new_tokens=length, seed=seed
        )
        last = trace["rounds"][-1]
        assert len(trace["text"]["ids"]) == length and last["cache"]["after"] == len(PROMPT) + length - 1
        found.append((last["num_accepted"] + 1 - last["num_emitted"], sum(d["emitted"] for d in last["drafts"])))
    assert any(cut > 0 for cut, _ in found)


def test_what_is_in_sight(kind):
    """By the definitions of window and convention, from the lengths alone."""
    trace, _ = recorded(kind)
    slid = False
    for described in trace["rounds"]:
        before = described["cache"]["before"]
        first = max(0, before - (SMALL_WINDOW + 1))  # the transformers convention: one key more
        assert described["sees"]["sliding_attention"]["draft"] == [first, before - 1]
        assert described["sees"]["full_attention"]["draft"] == [0, before - 1]
        for row, (start, end) in enumerate(described["sees"]["sliding_attention"]["verify"]):
            assert (start, end) == (max(0, before + row - SMALL_WINDOW + 1), before + row)
        slid = slid or first > 0
    assert slid


def test_a_round_that_differs_is_refused(monkeypatch):
    """Here one stage is another function than the one that is compiled into the round."""
    options, seed = KINDS["token"]

    def accepts_nothing(p, tokens, q, uniforms, *, rule):
        return decide(p, tokens, q, uniforms.at[:, 0].set(0.9999999) * 0 + 0.9999999)

    monkeypatch.setattr(recording, "_decide", accepts_nothing)
    with pytest.raises(RoundsDiffer, match=r"^round \d+: stage by stage the .* rounding decided; record in float32"):
        recording.record(small_target(), small_drafter(), None, PROMPT, options, max_new_tokens=LENGTH, seed=seed)


def test_settings_are_recorded():
    options, _ = KINDS["cut"]
    settings = recorded("cut")[0]["settings"]
    assert settings["sampling"] == {"temperature": 4, "top_k": 8, "top_p": 0.95} == settings["draft_sampling"]
    assert (settings["draft_length"], settings["max_new_tokens"], settings["seed"]) == (GAMMA, LENGTH, 2)
    assert recorded("greedy")[0]["settings"]["acceptance"] == "greedy"
    assert recorded("greedy drafts")[0]["settings"]["draft_sampling"]["temperature"] == 0
    assert dataclasses.replace(options).acceptance == settings["acceptance"] == "token"
