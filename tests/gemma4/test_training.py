"""The training loop resumes as if uninterrupted; the held-out measure counts every token once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4.training import Schedule, fit, held_out_nats, make_optimizer, next_token_loss, windows
from tests.models import SMALL_VOCAB, small_target

SCHEDULE = Schedule(steps=12, warmup=3)


def square_loss(params, batch):
    return jnp.mean((batch @ params["matrix"] - params["embed_target"]) ** 2)


def start():
    return {"matrix": jnp.full((4, 3), 0.5), "embed_target": jnp.arange(3.0)}


def batch_at(step):
    return jnp.asarray(np.random.default_rng(step).normal(size=(8, 4)), jnp.float32)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    def interrupted(step):
        if step == 7:
            raise KeyboardInterrupt
        return batch_at(step)

    whole = fit(square_loss, start(), batch_at, SCHEDULE, tmp_path / "whole", label="whole", save_every=4)
    with pytest.raises(KeyboardInterrupt):
        fit(square_loss, start(), interrupted, SCHEDULE, tmp_path / "parts", label="parts", save_every=4)
    parts = fit(square_loss, start(), batch_at, SCHEDULE, tmp_path / "parts", label="parts", save_every=4)
    assert jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts) == {"matrix": True, "embed_target": True}
    assert not (whole["matrix"] == start()["matrix"]).any()


def test_the_initial_parameters_are_not_changed(tmp_path):
    params = start()
    fit(square_loss, params, batch_at, SCHEDULE, tmp_path, label="run")
    assert jax.tree.map(lambda a, b: bool((a == b).all()), params, start()) == {"matrix": True, "embed_target": True}


def test_the_curve_is_logged(tmp_path):
    evaluate = lambda params: {"size": float(jnp.abs(params["matrix"]).sum())}
    schedule = SCHEDULE._replace(steps=45, matrix_rate=0.1, other_rate=0.1)
    fit(square_loss, start(), batch_at, schedule, tmp_path, label="run", evaluate=evaluate, evaluate_every=20)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [20, 40, 45]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all({"run", "loss", "seconds", "size"} <= set(entry) for entry in log)


def steps_logged(directory):
    return [json.loads(line)["step"] for line in (directory / "log.jsonl").read_text().splitlines()]


def test_a_finished_run_is_not_trained_again(tmp_path):
    """Three steps, a checkpoint at every second: the last step is saved too, so that a second call takes no step."""
    run = dict(label="run", save_every=2, evaluate_every=1)
    finished = fit(square_loss, start(), batch_at, Schedule(3), tmp_path, **run)
    again = fit(square_loss, start(), lambda step: pytest.fail(f"step {step}"), Schedule(3), tmp_path, **run)
    assert jax.tree.map(lambda a, b: bool((a == b).all()), finished, again) == {"matrix": True, "embed_target": True}
    assert steps_logged(tmp_path) == [1, 2, 3]


def test_a_schedule_that_ends_before_the_checkpoint_is_refused(tmp_path):
    """The run stays as it is, and continues with a longer schedule."""
    run = dict(label="run", evaluate_every=1)
    fit(square_loss, start(), batch_at, Schedule(2), tmp_path, **run)
    with pytest.raises(ValueError, match="checkpoints: holds step 2, past the 1 .*; ask for 2 or more, or"):
        fit(square_loss, start(), batch_at, Schedule(1), tmp_path, **run)
    assert steps_logged(tmp_path) == [1, 2]
    fit(square_loss, start(), batch_at, Schedule(3), tmp_path, **run)
    assert steps_logged(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("stopped_at", [1, 4, 7])
def test_a_resumed_run_has_one_line_a_step(stopped_at, tmp_path):
    """Interrupted in the evaluation of a step, with and without a checkpoint there, and while it wrote that step's line."""

    def interrupted(params):
        if len(steps_logged(tmp_path) if (tmp_path / "log.jsonl").exists() else []) == stopped_at - 1:
            raise KeyboardInterrupt
        return {}

    run = dict(label="run", save_every=4, evaluate_every=1)
    with pytest.raises(KeyboardInterrupt):
        fit(square_loss, start(), batch_at, SCHEDULE, tmp_path, evaluate=interrupted, **run)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"run": "run", "st')
    fit(square_loss, start(), batch_at, SCHEDULE, tmp_path, **run)
    assert steps_logged(tmp_path) == list(range(1, 13))


NOT_FINITE = {
    "loss": lambda weight, is_bad: weight**2 * jnp.where(is_bad, jnp.nan, 1),
    "gradient": lambda weight, is_bad: weight**2 + jnp.sqrt(jnp.where(is_bad, 0 * weight, 1)),  # the loss is finite
}


@pytest.mark.parametrize("what", NOT_FINITE)
def test_a_step_that_is_not_finite_ends_training(what, tmp_path):
    """At step 6, where a checkpoint is due: the error names the step and the last good checkpoint, where training resumes."""

    def train(directory, bad):
        loss = lambda params, is_bad: NOT_FINITE[what](params["weight"], is_bad)
        at = lambda step: jnp.array(step + 1 == bad)
        run = dict(label="run", save_every=2, evaluate_every=1)
        return fit(loss, {"weight": jnp.array(1.0)}, at, SCHEDULE, tmp_path / directory, **run)

    with pytest.raises(FloatingPointError, match="run: step 6 .*checkpoints keeps step 4;"):
        train("ours", bad=6)
    log = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "ours" / "log.jsonl").open()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5]
    assert train("ours", bad=None)["weight"] == train("whole", bad=None)["weight"] != 1


def test_a_first_step_that_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError, match="step 1 has the loss nan .*keeps nothing yet"):
        fit(square_loss, start(), lambda step: batch_at(step) * jnp.nan, SCHEDULE, tmp_path, label="run")


def test_the_schedule_warms_up_and_decays_to_zero():
    scale = lambda step: float(SCHEDULE._replace(steps=100, warmup=10).scale(jnp.array(step)))
    assert scale(0) == pytest.approx(0.1) and scale(20) == 1 and scale(40) == 1
    assert scale(70) == pytest.approx(0.5) and scale(100) == 0


def test_held_out_nats_are_the_sum_over_tokens():
    """Against one forward per window, on documents of lengths around the window's."""
    target, loss = small_target(), jax.jit(next_token_loss)
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, SMALL_VOCAB, length) for length in (1, 9, 10, 11, 25)]
    expected = 0.0
    for document in documents:
        for begin in range(0, len(document), 10):
            piece = document[begin : begin + 10]
            expected += len(piece) * float(loss(target, jnp.array([[2, *piece]], jnp.int32)))
    assert held_out_nats(target, documents, length=10, bos=2, batch=4) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("time", [0, 1])
def test_a_text_with_no_token_to_predict_is_refused(time):
    with pytest.raises(ValueError, match=rf"tokens: expected two or more a row, .* got \[3, {time}\]"):
        next_token_loss(small_target(), jnp.zeros((3, time), jnp.int32))


def test_windows_depend_on_the_step_alone():
    batches = windows(np.arange(100), length=5, batch=3, bos=7, seed=0)
    first, again, other = batches(3), batches(3), batches(4)
    assert first.shape == (3, 6) and (first[:, 0] == 7).all()
    assert (np.diff(first[:, 1:]) == 1).all()
    assert (first == again).all() and (first != other).any()


def test_every_window_of_the_stream_is_drawn():
    """20 tokens have 13 windows of 8, the first and the last included; a stream as long as a window has one."""
    first_tokens = windows(np.arange(20), length=8, batch=500, bos=7, seed=0)(0)[:, 1]
    assert set(first_tokens.tolist()) == set(range(13))
    whole = windows(np.arange(8), length=8, batch=2, bos=7, seed=0)(0)
    np.testing.assert_array_equal(whole, [[7, *range(8)]] * 2)


def test_a_stream_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="windows: 7 tokens, expected at least 8; give more text"):
        windows(np.arange(7), length=8, batch=2, bos=7, seed=0)


def test_matrices_use_muon_and_the_rest_adam():
    """Adam's first update has the same magnitude at every number."""
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    gradients = {"embed_tokens.weight": gradient, "q_proj.weight": gradient, "norm.weight": gradient[0]}
    schedule = Schedule(steps=10, warmup=1, weight_decay=0.0)
    optimizer = make_optimizer(schedule, gradients)
    updates, _ = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params))(gradients)
    is_adams = {name: bool(np.ptp(np.abs(x)) < 1e-3 * np.abs(x).max()) for name, x in updates.items()}
    assert is_adams == {"embed_tokens.weight": True, "q_proj.weight": False, "norm.weight": True}


def test_the_logged_loss_is_the_mean_since_the_last_entry(tmp_path):
    loss = lambda params, batch: batch + 0 * params["matrix"].sum() + 0 * params["embed_target"].sum()
    schedule = SCHEDULE._replace(steps=8)
    fit(loss, start(), lambda step: jnp.float32(step), schedule, tmp_path, label="run", evaluate_every=4)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in log] == [1.5, 5.5]
