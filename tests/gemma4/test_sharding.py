"""A pair that is split over devices computes the same, and no device holds more than its part.

Tests of several devices read the report of `tests/virtual_devices.py`, which runs in a process of its own on virtual devices.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import decoding
import drafter
import gemma4
from decoding.oracle.tiny import restless
from gemma4.checkpoints.params import named_params, shape_only
from gemma4.sharding import SPLIT, TABLE, WHOLE, automatic, footprint, mesh_of, shardings, specs
from tests.models import CLUSTERED, TINY, random_target, write_pair
from tests.virtual_devices import PROMPTS

ROOT = Path(__file__).parents[2]


class Expected(NamedTuple):
    undivided: set[str]  # projections that the number of devices does not divide; 2.k is k_proj of layer 2
    of_drafter: set[str]
    caches: list[int]  # for each owner of K/V, into how many parts its cache is split


QUERY_SIDE = {f"{layer}.{side}" for layer in range(4) for side in "qo"}
ALL_KV = {f"{layer}.{side}" for layer in range(3) for side in "kv"}
CASES = {
    ("E2B", 2): Expected(ALL_KV, set(), [1, 1, 1]),  # one KV head
    ("E2B", 4): Expected(ALL_KV, QUERY_SIDE, [1, 1, 1]),  # and two query heads in the drafter
    ("E4B", 2): Expected(set(), set(), [2, 2, 2]),
    ("E4B", 4): Expected(ALL_KV, QUERY_SIDE, [1, 1, 1]),
    ("12B", 2): Expected({"2.k"}, set(), [2, 2, 1]),  # one KV head in the full layer
    ("12B", 4): Expected(ALL_KV - {"2.v"}, QUERY_SIDE, [1, 1, 1]),
    ("26B-A4B", 2): Expected(set(), set(), [2, 2]),
    ("26B-A4B", 4): Expected({"1.k"}, set(), [4, 1]),
    ("31B", 2): Expected(set(), set(), [2, 2, 2]),
    ("31B", 4): Expected(set(), set(), [4, 4, 4]),
}
QUICK = [("26B-A4B", 2)]


class Run(NamedTuple):
    reports: dict
    messages: str


def on_virtual_devices(cases: list[tuple[str, int]], pytestconfig) -> Run:
    """With the compiler settings of `tests/conftest.py`."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(not pytestconfig.getoption("optimized")),
    }
    if hasattr(pytestconfig, "cache"):
        environment["JAX_COMPILATION_CACHE_DIR"] = str(pytestconfig.cache.mkdir("compiled"))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    command = [sys.executable, "-m", "tests.virtual_devices", json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Run(json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def quick(pytestconfig) -> Run:
    return on_virtual_devices(QUICK, pytestconfig)


@pytest.fixture(scope="module")
def others(pytestconfig) -> Run:
    return on_virtual_devices([case for case in CASES if case not in QUICK], pytestconfig)


@pytest.fixture(
    params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=lambda case: f"{case[0]}/{case[1]}",
)
def case(request) -> tuple[str, int]:
    return request.param


@pytest.fixture
def report(case, request) -> dict:
    layout, devices = case
    return request.getfixturevalue("quick" if case in QUICK else "others").reports[f"{layout}/{devices}"]


def test_loaded_in_place(report):
    """Bit for bit what was saved, from safetensors and from Orbax; never copied from one device to another."""
    assert report["loaded"] == [True, True]
    assert report["orbax_keeps"]


def test_parameters_are_split_as_in_the_table(report, case):
    expected, devices = CASES[case], case[1]
    for parts, undivided in zip(report["parts"], (expected.undivided, expected.of_drafter), strict=True):
        whole = {f"layers.{name.replace('.', '.self_attn.')}_proj.weight" for name in undivided}
        assert whole < parts.keys()
        is_clustered = "masked_embedding.token_ordering" in parts
        for name, count in parts.items():
            path = ".".join("*" if part.isdecimal() else part for part in name.split("."))
            is_split = path in SPLIT and name not in whole and not (is_clustered and path == "embed_tokens.weight")
            assert count == (devices if is_split else 1), name


def test_every_device_holds_its_footprint(report, case):
    for held, each in zip(report["held"], report["footprints"], strict=True):
        assert held == [each] * case[1]


def test_logits(report):
    """Of the target and of its twin: relative to the largest logit."""
    assert max(report["distances"]) < 2e-5


def test_weights_stay_where_they_are(report):
    """To read one token, devices exchange hidden states, which are smaller here than a device's part of any weight."""
    for most_exchanged in report["most_exchanged"]:
        assert 0 < most_exchanged < report["smallest_part"]


def test_devices_add_up_once_for_attention_and_once_for_an_mlp(report, case):
    """And for a lookup; not for every norm, as with a split residual stream (63 times in E2B's layout)."""
    config = TINY[case[0]]
    if config.enable_moe_block:  # its residual stream is split as the experts are
        return
    # Per-layer inputs: once more a layer, and for their lookup and their norm, because the layers' gates split them.
    in_a_layer, before = (3, 3) if config.hidden_size_per_layer_input else (2, 1)
    assert max(report["exchanges"]) <= in_a_layer * config.num_hidden_layers + before


def test_copies_of_twins_are_split_as_their_tables(report, case):
    """The blocks of a clustered head are whole on each device, as its table is."""
    layout, devices = case
    assert report["copies"] == [{}, {"blocks": 1} if layout in CLUSTERED else {}]


def test_caches_are_split_by_kv_heads(report, case):
    """From `init_cache` on, also where the prefill calls it."""
    assert report["cache"] == CASES[case].caches
    new_caches, count = report["new_caches"], len(CASES[case].caches)
    assert new_caches and len(new_caches) % count == 0
    assert all(new_caches[i : i + count] == CASES[case].caches for i in range(0, len(new_caches), count))


def test_texts(report, case, near_ties):
    """Greedy: speculative and split, in all loops, as autoregressive on one device."""
    whole, *split = report["texts"]
    target = restless(random_target(TINY[case[0]]))
    for texts in split:
        for row, prompt in enumerate(PROMPTS):
            near_ties.compare(target, prompt, texts[row], whole[row], str(case))


def test_threads_are_refused(report):
    assert report["threads"] == "threads: expected 1 for a target that is split over several devices, got 2"


@pytest.mark.slow
def test_a_warning_where_much_is_not_split(others):
    lines = "whole on each, because 4 does not divide their heads or width:\n  layers.*.self_attn.k_proj"
    assert lines in others.messages


def test_no_warning_where_nearly_all_is_split(quick):
    assert "does not divide" not in quick.messages


# -- full size, by shapes ----------------------------------------------------------------------------------------------

# Percent of the bytes on each of 4 and of 8 devices.  Most of a drafter of E2B or E4B is a table that stays whole.
TARGETS = {"E2B": (25.5, 13.0), "E4B": (26.0, 13.7), "12B": (25.1, 12.6), "26B-A4B": (25.1, 12.6), "31B": (25.0, 12.8)}
DRAFTERS = {"E2B": (91.5, 93.0), "E4B": (91.5, 93.0), "12B": (27.1, 14.9), "26B-A4B": (26.5, 14.3), "31B": (27.6, 15.6)}


@functools.cache
def shapes(kind: str, size: str) -> dict:
    package, build = (gemma4, gemma4.Gemma4) if kind == "target" else (drafter, drafter.Drafter)
    return named_params(shape_only(build, package.PRESETS[size], "bfloat16"))


@pytest.mark.parametrize("size", gemma4.PRESETS)
@pytest.mark.parametrize("kind", ["target", "drafter"])
def test_share_of_a_device(kind, size):
    params = shapes(kind, size)
    total = sum(2 * leaf.size if leaf.dtype.name == "bfloat16" else 4 * leaf.size for leaf in params.values())
    for devices, percent in zip((4, 8), (TARGETS if kind == "target" else DRAFTERS)[size], strict=True):
        plan = footprint(params, devices)
        print(f"{size} {kind}: {plan}")
        assert plan.total == total
        assert round(100 * plan.each / total, 1) == percent


def test_table_is_exactly_that_of_the_released_models():
    """Every path has one entry, and every entry a path."""
    names = {name for kind in ("target", "drafter") for size in gemma4.PRESETS for name in shapes(kind, size)}
    paths = {".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names}
    assert paths == set(TABLE)
    assert len(TABLE) == len(SPLIT) + len(WHOLE) == len(set(SPLIT) | set(WHOLE))


def test_undivided_heads_are_listed():
    plan = footprint(shapes("target", "31B"), 8)
    assert plan.undivided == {f"layers.{layer}.self_attn.k_proj.weight": 22_020_096 for layer in range(5, 60, 6)}
    assert str(plan).splitlines() == [
        "each of 8 devices holds 7,869.3 of 61,394.7 MB (12.8%) of the parameters",
        "whole on each, because 8 does not divide their heads or width:",
        "  layers.*.self_attn.k_proj.weight: 10, together 220.2 MB",
    ]
    assert len(str(footprint(shapes("target", "31B"), 4)).splitlines()) == 1


def test_only_whole_heads():
    """31B's full layers have 4 KV heads of 512: eight devices divide their width, but not their number."""
    params = shapes("target", "31B")

    def spec(devices, name):
        return specs(params, devices)[f"layers.5.self_attn.{name}_proj.weight"]

    assert (spec(4, "k"), spec(8, "k")) == (P(None, "model"), P())
    assert (spec(8, "q"), spec(8, "o")) == (P(None, "model"), P("model", None))
    assert (spec(64, "q"), spec(64, "o")) == (P(), P())


def test_unknown_parameter():
    with pytest.raises(ValueError, match=r"^layers\.0\.bias: gemma4/sharding\.py has no entry for this parameter"):
        specs({"layers.0.bias": jax.ShapeDtypeStruct((4,), np.float32)}, 2)


# -- meshes ------------------------------------------------------------------------------------------------------------


def one_device_mesh(*axes: str) -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape([1] * len(axes)), axes)


@pytest.fixture(scope="module")
def pair_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory)
    return directory


@pytest.mark.parametrize("axes", [("x",), ("data", "model")])
def test_mesh_of_other_axes(axes, pair_dir):
    mesh, target, draft = one_device_mesh(*axes), pair_dir / "target", pair_dir / "drafter"
    for use in (
        lambda: gemma4.load(target, mesh=mesh),
        lambda: drafter.load(draft, mesh=mesh),
        lambda: decoding.load_pair(target, draft, mesh=mesh),
        lambda: gemma4.init_cache(TINY["31B"], mesh=mesh),
    ):
        with pytest.raises(ValueError) as caught:
            use()
        expected = 'mesh: expected one axis, as in jax.make_mesh((8,), ("model",)), got axes '
        assert str(caught.value) == expected + str(axes)


@pytest.mark.parametrize("what", [8, AbstractMesh((8,), ("model",))], ids=["number", "no devices"])
def test_no_mesh(what):
    with pytest.raises(ValueError, match=r"^mesh: expected one axis, as in .*, got (8$|AbstractMesh)"):
        automatic(what)


def test_mesh_of_a_model():
    """None for a weight on one device, on a mesh of other axes, or traced."""
    weight = jnp.ones((4, 4))
    ours = shardings({"embed_tokens.weight": weight}, one_device_mesh("model"))["embed_tokens.weight"]
    assert mesh_of(jax.device_put(weight, ours)) == automatic(one_device_mesh("model"))
    assert mesh_of(jax.device_put(weight)) is None
    other = NamedSharding(one_device_mesh("x"), P())
    assert mesh_of(jax.device_put(weight, other)) is None
    assert jax.jit(lambda weight: 0 * weight[0, 0] + (mesh_of(weight) is None))(weight) == 1
