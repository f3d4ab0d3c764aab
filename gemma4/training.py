"""Train a decoder from nothing: the loss, the optimizer, and a resumable loop that takes any loss.

`decoding/training` trains a target and its drafter with it.  Optax has the optimizer, and Orbax writes the checkpoints.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gemma4.model import Gemma4
from gemma4.progress import progress

Params = dict[str, jax.Array]


class Schedule(NamedTuple):
    """Linear warm-up, a plateau, then linear decay to zero over the last `decay` of the steps."""

    steps: int
    matrix_rate: float = 7e-3  # Muon, for the weight matrices
    other_rate: float = 5e-3  # AdamW, for tables, norms and scalars
    warmup: int = 40
    decay: float = 0.6
    weight_decay: float = 0.1

    def scale(self, step: ArrayLike) -> jax.Array:
        return jnp.minimum((step + 1) / self.warmup, jnp.clip((self.steps - step) / (self.decay * self.steps), 0, 1))


def next_token_loss(target: Gemma4, tokens: Int[Array, "b t"]) -> Float[Array, ""]:
    """Mean cross-entropy of each token given those before it, in nats.  Errors: ValueError for fewer than two tokens a row."""
    if tokens.shape[1] < 2:
        raise ValueError(
            f"tokens: expected two or more a row, because the first predicts the second, got {list(tokens.shape)}"
        )
    hidden, _ = target(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(target.logits(hidden), tokens[:, 1:])
    return losses.mean()


def make_optimizer(schedule: Schedule, params: Params) -> optax.GradientTransformation:
    """Muon for matrices, with updates scaled to the size of AdamW's, and AdamW for everything else.

    Source: Jordan et al. 2024 (Muon), the scaling of Liu et al. 2025 (arXiv 2502.16982), as in `optax.contrib.muon`.
    """
    is_matrix = {name: value.ndim == 2 and "embed" not in name for name, value in params.items()}
    dimensions: Any = {name: optax.contrib.MuonDimensionNumbers() if is_matrix[name] else None for name in params}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            lambda step: schedule.matrix_rate * schedule.scale(step),
            adam_learning_rate=lambda step: schedule.other_rate * schedule.scale(step),
            weight_decay=schedule.weight_decay,
            adam_b2=0.95,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=dimensions,
        ),
    )


def fit(
    loss: Callable[[Params, Any], jax.Array],
    params: Params,
    batch_at: Callable[[int], Any],
    schedule: Schedule,
    directory: Path,
    *,
    label: str,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
    evaluate_every: int = 100,
    save_every: int = 50,
    report: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Params:
    """Minimise `loss(params, batch)` over `schedule.steps` steps and return the trained parameters.  `params` stay as they are.

    Resumable: `batch_at(step)` must depend on the step alone.  Parameters and optimizer state are saved under
    `directory`/checkpoints every `save_every` steps and after the last one, and a second call with the same arguments resumes
    there.  Every `evaluate_every` steps it appends one JSON object to `directory`/log.jsonl: step, mean loss in nats, seconds,
    and what `evaluate` returns; `report` gets the same object.
    Errors: FloatingPointError if a step's loss or its new parameters are not finite; the last checkpoint stays as it is.
            ValueError if the checkpoint is of a later step than the schedule's last.
    """
    optimizer = make_optimizer(schedule, params)

    @jax.jit(donate_argnums=(0, 1))
    def step_fn(params: Params, state: optax.OptState, batch: Any) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        params = cast(Params, optax.apply_updates(params, updates))
        return params, state, value

    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log.jsonl"
    options = ocp.CheckpointManagerOptions(max_to_keep=1, save_interval_steps=save_every)
    with ocp.CheckpointManager((directory / "checkpoints").absolute(), options=options) as manager:
        carry = jax.tree.map(jnp.copy, params), optimizer.init(params)  # copied, because a step donates its arguments
        carry, first = _resumed(carry, manager, schedule.steps)
        _drop_lines_past(first, log)
        started, recent = time.monotonic(), []
        with progress(label, schedule.steps, "steps", done=first) as advance:
            for step in range(first, schedule.steps):
                params, state, value = step_fn(*carry, batch_at(step))
                carry, done = (params, state), step + 1
                if not (jnp.isfinite(value) and _all_finite(carry)):
                    raise _diverged(label, done, value, manager)
                recent.append(float(value))
                advance(1, description=f"{label} loss {np.mean(recent[-20:]):.3f}")
                if done % evaluate_every == 0 or done == schedule.steps:
                    entry = {"run": label, "step": done, "loss": float(np.mean(recent))}
                    entry |= {"seconds": round(time.monotonic() - started, 1)}
                    entry |= evaluate(carry[0]) if evaluate else {}
                    recent.clear()
                    with log.open("a") as lines:
                        lines.write(json.dumps(entry) + "\n")
                    report(entry)
                # After the line in the log, because a run that resumes here does not write that line again.
                manager.save(done, args=ocp.args.StandardSave(carry), force=done == schedule.steps)
        manager.wait_until_finished()
    return carry[0]


def _resumed(carry: Any, manager: ocp.CheckpointManager, steps: int) -> tuple[Any, int]:
    """The contents of the last checkpoint, and its step; `carry` itself and 0 if there is none."""
    first = manager.latest_step()
    if first is None:
        return carry, 0
    if first > steps:
        raise ValueError(
            f"{manager.directory}: holds step {first}, past the {steps} steps of this schedule; "
            f"ask for {first} or more, or give another directory"
        )
    return manager.restore(first, args=ocp.args.StandardRestore(carry)), first


def _drop_lines_past(step: int, log: Path) -> None:
    """Remove the lines of steps after a checkpoint, which run again and write them again, and a line that is incomplete."""
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        scratch = log.with_suffix(".tmp")
        scratch.write_text("".join(kept))
        scratch.replace(log)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _diverged(label: str, step: int, loss: jax.Array, manager: ocp.CheckpointManager) -> FloatingPointError:
    manager.wait_until_finished()
    kept = manager.latest_step()
    return FloatingPointError(
        f"{label}: step {step} has the loss {float(loss)} and leaves weights that are not all finite; "
        f"{manager.directory} keeps {'nothing yet' if kept is None else f'step {kept}'}; "
        "try lower rates, or look at this step's batch"
    )


def windows(tokens: np.ndarray, length: int, batch: int, bos: int, seed: int) -> Callable[[int], np.ndarray]:
    """batch_at(step): `batch` random windows of one stream of ids, each with BOS in front: int32 [batch, length + 1].

    Errors: ValueError if the stream is shorter than one window.
    """
    if len(tokens) < length:
        raise ValueError(
            f"windows: {len(tokens)} tokens, expected at least {length}; give more text, or shorter windows"
        )

    def batch_at(step: int) -> np.ndarray:
        starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - length + 1, batch)
        rows = tokens[starts[:, None] + np.arange(length)]
        return np.concatenate([np.full((batch, 1), bos), rows], axis=1).astype(np.int32)

    return batch_at


def held_out_nats(target: Gemma4, documents: Iterable[np.ndarray], length: int, bos: int, batch: int = 8) -> float:
    """Total nats of all tokens of `documents`, read in separate windows of `length` tokens, each with BOS in front."""
    rows = []
    for document in documents:
        for start in range(0, len(document), length):
            piece = document[start : start + length]
            rows.append(np.pad(np.concatenate([[bos], piece]), (0, length - len(piece)), constant_values=-1))
    rows += [np.full(length + 1, -1)] * (-len(rows) % batch)
    groups = np.stack(rows).reshape(-1, batch, length + 1)
    return sum(float(_window_nats(target, jnp.asarray(group, jnp.int32))) for group in groups)


@jax.jit
def _window_nats(target: Gemma4, rows: jax.Array) -> jax.Array:
    tokens, labels = jnp.maximum(rows[:, :-1], 0), rows[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(target.logits(target(tokens)[0]), jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, losses, 0).sum()
