"""`gemma4-mtp plan`: its memory against the compiler's, its figures by hand, and what a user can get wrong."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from decoding import fast
from decoding.bench import cost
from decoding.bench.work import Storage, experts_touched, forward_work, stored
from decoding.cli.main import main
from decoding.options import Options
from decoding.planning.architecture import Models, models_of
from decoding.planning.devices import DEVICES, Device
from decoding.planning.plan import Setup, memory, plan
from decoding.round import speculative_round
from decoding.stages.prefill import MAX_CHUNK, ring_chunk
from decoding.state import DecodeState, Round
from drafter import Drafter
from drafter import config as drafter_config
from drafter.config import PRESETS as DRAFTERS
from gemma4 import PRESETS, Config, Gemma4, init_cache
from gemma4.checkpoints.params import shape_only
from gemma4.config import five_to_one
from tests.models import TINY, TINY_DRAFTERS

# Round figures, so that expectations can be written out.
ROUND_FIGURES = Device("a device", "gpu", memory=1e12, bandwidth=1e9, flops=1e12, float32_flops=1e12, launch=0.0)


# -- memory against XLA ------------------------------------------------------------------------------------------------


def compiled_memory(config: Config, drafts: drafter_config.Config, batch: int, context: int, gamma: int):
    """XLA's figures for a round compiled for this machine, and ours, for shapes alone."""
    target, draft_model = shape_only(Gemma4, config, jnp.float32), shape_only(Drafter, drafts, jnp.float32)

    def state() -> DecodeState:
        ids = jnp.zeros(batch, jnp.int32)
        cache = init_cache(config, batch, context, chunk=ring_chunk(MAX_CHUNK))
        last = Round(*(jnp.zeros((batch, *more), jnp.int32) for more in ((gamma,), (), (gamma + 1,), ())))
        hidden = jnp.zeros((batch, config.hidden_size))
        return DecodeState(cache, ids, hidden, jax.random.key(0), ids, ids, ids.astype(bool), last, ids == 0)

    twins = fast.for_backend(target, "gpu"), fast.for_backend(draft_model, "gpu")
    round_fn = functools.partial(speculative_round, options=fast.with_kernels(Options(gamma)))
    compiled = jax.jit(round_fn, donate_argnums=2).lower(*twins, jax.eval_shape(state)).compile()
    setup = Setup(ROUND_FIGURES, context=context, batch=batch, draft_lengths=(gamma,))
    return compiled.memory_analysis(), memory(target, draft_model, setup)


def check_memory(config: Config, drafts: drafter_config.Config, batch: int, context: int, gamma: int):
    theirs, ours = compiled_memory(config, drafts, batch, context, gamma)
    resident = ours["target"] + ours["drafter"] + ours["cache"]
    assert resident == pytest.approx(theirs.argument_size_in_bytes, rel=1e-3)
    total = theirs.argument_size_in_bytes + theirs.temp_size_in_bytes
    assert resident + ours["round_workspace"] == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize("layout", TINY)
def test_memory_is_what_xla_allocates(layout):
    check_memory(TINY[layout], TINY_DRAFTERS[layout], batch=2, context=512, gamma=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_memory_at_full_width(name):
    """Six layers; all widths, the vocabulary and the context are those of the released size."""
    shared = 3 if PRESETS[name].num_kv_shared_layers else 0
    types = five_to_one(12 if shared else 6)
    config = dataclasses.replace(PRESETS[name], layer_types=types, num_kv_shared_layers=shared)
    check_memory(config, DRAFTERS[name], batch=1, context=8192, gamma=4)


def test_memory_of_each_device():
    """31B over 8: 16 K/V heads of sliding layers are divided, 4 of full layers are not; the table is, norms are not."""
    models = models_of("31B")
    one, eight = (memory(models.target, models.draft_model, Setup(DEVICES["h100"], count)) for count in (1, 8))
    assert one["target"] == 2 * (30_697_345_280 + 60) and one["fits"]
    params = stored(models.target, Storage(devices=8))
    assert params["embed_tokens.weight"].size == 262_144 * 5376 / 8 and params["norm.weight"].size == 5376
    sliding, full = 50 * 2 * 16 * 256 * (1024 + 513) * 2, 10 * 2 * 4 * 512 * 8192 * 2
    assert one["cache"] == sliding + full and eight["cache"] == sliding / 8 + full


@pytest.mark.parametrize("bits, share", [(4.5, 4.5 / 16), (8.5, 8.5 / 16)])
def test_bits_of_weights(bits, share):
    """Only matrices are stored so; in 31B they are nearly all."""
    target = models_of("31B").target
    sizes = [sum(w.bytes for w in stored(target, storage).values()) for storage in (Storage(), Storage(bits))]
    assert sizes[1] / sizes[0] == pytest.approx(share, rel=1e-3)


# -- time --------------------------------------------------------------------------------------------------------------


def test_seconds_by_hand():
    """A device of 1 GB/s: a stage takes its bytes in nanoseconds, then its kernels and sums."""
    models, setup = models_of("E2B"), Setup(ROUND_FIGURES, draft_lengths=(4,))
    found = plan(models, setup)
    step, draft, verify, accept = found["stages"]
    assert step["seconds"] == pytest.approx(forward_work(models.target, 1, 1, 8192).bytes / 1e9)
    assert verify["seconds"] == pytest.approx(forward_work(models.target, 1, 5, 8192).bytes / 1e9)
    assert accept["seconds"] == pytest.approx(5 * 262_144 * 4 / 1e9)
    seconds = draft["seconds"] + verify["seconds"] + accept["seconds"]
    (loop,) = found["loops"]
    assert loop["tokens_per_round"] == pytest.approx(1 + 0.7 + 0.7**2 + 0.7**3 + 0.7**4)
    assert loop["seconds_per_round"] == pytest.approx(seconds)
    assert loop["tokens_per_second"] == pytest.approx(loop["tokens_per_round"] / seconds)
    slow = plan(models, setup._replace(device=ROUND_FIGURES._replace(launch=1e-3)))["stages"]
    assert slow[1]["seconds"] - draft["seconds"] == pytest.approx(4 * 103 * 1e-3)
    halved = plan(models, setup._replace(device=ROUND_FIGURES._replace(bandwidth=1e15)))["stages"]
    assert halved[2]["bound_by"] == "operations" and halved[2]["seconds"] == pytest.approx(verify["flops"] / 1e12)


def test_sums_over_devices():
    device = ROUND_FIGURES._replace(link_bandwidth=1e9, link_latency=1e-3)
    verify = plan(models_of("31B"), Setup(device, count=2, draft_lengths=(4,)))["stages"][2]
    assert verify["sums"] == 2 * 60
    assert verify["summed_bytes"] == 120 * 5 * 5376 * 2, "2 (n - 1) / n of the activations of five tokens, for n = 2"
    alone = plan(models_of("31B"), Setup(device, draft_lengths=(4,)))["stages"][2]
    assert alone["sums"] == 0 and alone["bytes"] > 1.9 * verify["bytes"] and alone["flops"] > 1.9 * verify["flops"]


def test_tokens_per_round():
    assert cost.tokens_per_round(cost.reached(0.5, 3), 3) == 1.875
    assert cost.tokens_per_round([0.8, 0.4], 2) == pytest.approx(2.2)
    assert cost.tokens_per_round([0.8, 0.4], 4) == pytest.approx(2.2 + 0.2 + 0.1), "the last ratio goes on"
    assert cost.tokens_per_round([0.8, 0.4], 1) == pytest.approx(1.8) and cost.tokens_per_round([0.0], 5) == 1


def test_break_even():
    times = cost.Times(autoregressive=1.0, draft=0.5, verify=1.2, accept=0.05)
    rate = cost.break_even(3, times)
    assert rate is not None
    assert cost.speed_up(1 + rate + rate**2 + rate**3, times) == pytest.approx(1, abs=1e-5)
    assert cost.break_even(1, times._replace(verify=1.6)) is None
    assert cost.break_even(1, times._replace(verify=0.1)) == pytest.approx(0, abs=1e-5)


def test_experts():
    """Exactly, over all routings of two tokens: 8 of 128 each; in expectation 128 (1 - (120/128)^2)."""
    config = PRESETS["26B-A4B"]
    assert experts_touched(config, 1) == pytest.approx(8) and experts_touched(config, 2) == pytest.approx(15.5)
    found = plan(models_of("26B-A4B"), Setup(ROUND_FIGURES, batch=4, draft_lengths=(1, 4)))["experts"]
    assert [entry["tokens"] for entry in found] == [4, 8, 20]
    assert plan(models_of("E2B"), Setup(ROUND_FIGURES))["experts"] is None


def test_the_best_draft_length_grows_with_acceptance():
    lengths = [
        plan(models_of("31B"), Setup(DEVICES["h200"], acceptance=cost.reached(rate, 8)))["best_draft_length"]
        for rate in (0.1, 0.5, 0.8, 0.95)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1] == 8


def test_a_target_alone():
    models = models_of("E2B")
    with pytest.raises(ValueError, match="E2B: has no drafter; name its directory with --drafter"):
        plan(Models("E2B", models.target, None), Setup(ROUND_FIGURES))


# -- the command -------------------------------------------------------------------------------------------------------


def test_tables(capsys):
    assert main(["plan", "26B-A4B", "--device", "m4-max", "--batch", "4", "--weight-bits", "4.5", "--launch", "0"]) == 0
    text = capsys.readouterr().out
    assert "fits" in text and "experts that a layer reads, of 128: 29.1 for the 4 tokens of a step" in text
    assert main(["plan", "31B", "--device", "h100", "--context", "262144"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_json_and_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.svg"
    assert main(["plan", "E2B", "--device", "tpu-v5p", "--count", "4", "--json", "--plot", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["loops"]) == 8 and found["setup"]["count"] == 4 and "tpu-v5p" in file.read_text()


def test_figures_by_hand(capsys):
    assert main(["plan", "12B", "--memory", "24", "--bandwidth", "900", "--flops", "100", "--json"]) == 0
    setup = json.loads(capsys.readouterr().out)["setup"]
    assert (setup["memory"], setup["bandwidth"], setup["flops"]) == (24e9, 900e9, 100e12)
    assert main(["plan", "12B", "--device", "h100", "--bandwidth", "2000", "--dtype", "float32", "--json"]) == 0
    setup = json.loads(capsys.readouterr().out)["setup"]
    assert (setup["memory"], setup["bandwidth"], setup["flops"]) == (80e9, 2000e9, 67e12)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["E2B", "--device", "abacus"], "--device: expected a100"),
        (["E2B", "--accept-rate", "1.2"], "--accept-rate: expected one probability in 0..1"),
        (["E2B", "--accept-rate", "0.5,0.6"], "that fall from draft to draft"),
        (["E2B", "--accept-rate", "much"], "--accept-rate: expected"),
        (["E2B", "--batch", "0"], "--batch: expected 1 to 65536, got 0"),
        (["E2B", "--context", "200000"], "--context: expected 1 to 131072, got 200000"),
        (["E2B", "--draft-lengths", "40"], "--draft-lengths: expected 1 to 32"),
        (["E2B", "--bandwidth", "-3"], "--bandwidth: expected a number above 0, got -3"),
        (["E2B", "--device", "m4-max", "--count", "2"], "--count 2: no link between several of m4-max is known"),
        (["E2B", "--plot", "plan.txt"], "--plot plan.txt: expected a file name"),
    ],
)  # fmt: skip
def test_mistakes(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out
