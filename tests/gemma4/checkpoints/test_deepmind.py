"""Checkpoints of google-deepmind/gemma: every tensor is read into the right parameter, and every fault is one clear error.

`gemma4/checkpoints/deepmind.py` describes the comparison with that package, which nothing here runs: it is not a dependency.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

import gemma4
from gemma4 import PRESETS, Gemma4
from gemma4.checkpoints import deepmind, orbax
from gemma4.checkpoints.directories import write_config
from gemma4.checkpoints.hf_config import target_json
from gemma4.checkpoints.params import named_params, shape_only, shapes
from gemma4.checkpoints.target import load_with_report
from gemma4.sharding import shardings
from tests.gemma4.checkpoints import common
from tests.gemma4.checkpoints.common import assert_same
from tests.models import TINY, random_target, random_tokens

RELEASED = json.loads((Path(__file__).parents[2] / "data" / "configs" / "deepmind.json").read_text())
SIZES = [name for name in RELEASED if name != "source"]
VISION_AND_AUDIO = (
    "vision_encoder/entry/pos_emb",
    "audio_encoder/feature/norm_0/scale",
    "embedder/mm_input_projection/w",
    "embedder/audio_input_projection/w",
)


def released(name: str) -> dict[str, tuple[int, ...]]:
    shapes = dict(RELEASED[name]["tensors"])
    for kind in RELEASED[name]["kinds_of_layers"]:
        shapes |= {f"layer_{i}/{key}": shape for i in kind["layers"] for key, shape in kind["tensors"].items()}
    return {key: tuple(shape) for key, shape in shapes.items()}


def tree_of(target: Gemma4) -> dict[str, np.ndarray]:
    """The same weights as google-deepmind/gemma names and shapes them, head by head."""
    config = target.config
    params = {name: np.asarray(leaf) for name, leaf in named_params(target).items()}
    rng = np.random.default_rng(0)
    columns = lambda name, heads: np.stack(np.split(params[name], heads, axis=1))  # [d, n * h] to [n, d, h]

    tree = {"embedder/input_embedding": params["embed_tokens.weight"], "final_norm/scale": params["norm.weight"]}
    if config.hidden_size_per_layer_input:
        by_layer = lambda name: np.stack(
            np.split(params[f"per_layer_embeddings.{name}.weight"], len(target.layers), 1), 1
        )
        norm = params["per_layer_embeddings.per_layer_projection_norm.weight"]
        tree["embedder/per_layer_embeddings"] = by_layer("embed_tokens_per_layer")
        tree["embedder/per_layer_model_projection/w"] = by_layer("per_layer_model_projection")
        tree["embedder/per_layer_projection_norm/scale"] = norm
    for i in range(config.num_hidden_layers):
        there, here = f"layer_{i}/", f"layers.{i}."
        attention, heads, kv_heads = f"{here}self_attn.", config.num_attention_heads, config.kv_heads(i)
        head_dim, width = config.layer_head_dim(i), config.hidden_size
        tree[f"{there}attn/q_einsum/w"] = columns(f"{attention}q_proj.weight", heads)
        tree[f"{there}attn/query_norm/scale"] = params[f"{attention}q_norm.weight"]
        tree[f"{there}attn/attn_vec_einsum/w"] = np.stack(np.split(params[f"{attention}o_proj.weight"], heads))
        if i >= config.first_kv_shared_layer:  # never read; random, so that a test fails if it were
            tree[f"{there}attn/kv_einsum/w"] = rng.normal(size=(2, kv_heads, width, head_dim)).astype(np.float32)
            tree[f"{there}attn/key_norm/scale"] = rng.normal(size=head_dim).astype(np.float32)
        else:
            tree[f"{there}attn/key_norm/scale"] = params[f"{attention}k_norm.weight"]
            key = columns(f"{attention}k_proj.weight", kv_heads)
            if f"{attention}v_proj.weight" in params:
                value = columns(f"{attention}v_proj.weight", kv_heads)
                tree[f"{there}attn/kv_einsum/w"] = np.stack([key, value])
            else:
                tree[f"{there}attn/k_einsum/w"] = key
        tree |= {f"{there}{name}": array for name, array in feed_forward(params, here, config).items()}
        norms = {"pre_attention_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
        norms["post_ffw_norm"] = "post_feedforward_layernorm"
        if config.hidden_size_per_layer_input:
            norms["post_per_layer_input_norm"] = "post_per_layer_input_norm"
            for name in ("per_layer_input_gate", "per_layer_projection"):
                tree[f"{there}{name}/w"] = params[f"{here}{name}.weight"]
        tree |= {f"{there}{name}/scale": params[f"{here}{ours}.weight"] for name, ours in norms.items()}
        tree[f"{there}skip_scale"] = params[f"{here}layer_scalar"]
    return tree


def feed_forward(params, here, config) -> dict[str, np.ndarray]:
    of = lambda name: params[here + name]
    dense, pre_norm = ("mlp2", "pre_ffw2_norm") if config.enable_moe_block else ("mlp", "pre_ffw_norm")
    tree = {
        f"{dense}/gating_einsum": np.stack([of("mlp.gate_proj.weight").T, of("mlp.up_proj.weight").T]),
        f"{dense}/linear": of("mlp.down_proj.weight"),
        f"{pre_norm}/scale": of("pre_feedforward_layernorm.weight"),
    }
    if not config.enable_moe_block:
        return tree
    gate_up = of("experts.gate_up_proj")
    return tree | {
        "post_ffw2_norm/scale": of("post_feedforward_layernorm_1.weight"),
        "pre_ffw_norm/scale": of("pre_feedforward_layernorm_2.weight"),
        "post_ffw1_norm/scale": of("post_feedforward_layernorm_2.weight"),
        "mlp/router_logits/w": of("router.proj.weight"),
        "mlp/router_scale": of("router.scale"),
        "mlp/per_expert_scale": of("router.per_expert_scale"),
        "mlp/gating_einsum/w": np.stack(np.split(gate_up, 2, axis=1), axis=1),
        "mlp/linear/w": np.swapaxes(of("experts.down_proj"), 1, 2),
    }


def write(directory: Path, tree: dict[str, np.ndarray], config: gemma4.Config | None) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, unflatten_dict({key: jnp.asarray(array) for key, array in tree.items()}, sep="/"))
    if config:
        write_config(directory, target_json(config))
    return directory


# -- the released sizes, without memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_of_the_released_size(name, tmp_path, monkeypatch):
    """Without config.json: the embedding table tells the size.  All but the K/V of shared layers is read, in our shapes."""
    leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    zeros = lambda _, wanted, found: ((key, jnp.zeros(x.shape, x.dtype)) for key, x in wanted.items())
    monkeypatch.setattr(orbax, "is_orbax", lambda _: True)
    monkeypatch.setattr(
        deepmind, "orbax_tensors", lambda _: {key: leaf(shape) for key, shape in released(name).items()}
    )
    monkeypatch.setattr(deepmind, "read_orbax", zeros)
    monkeypatch.setattr(deepmind, "check_fits", lambda *_: None)  # nothing is allocated here
    reports = []

    def load() -> Gemma4:
        target, report = load_with_report(tmp_path, jnp.bfloat16)
        reports.append(report)
        return target

    target = jax.eval_shape(load)
    assert target.config == PRESETS[name]
    blank = shape_only(Gemma4, PRESETS[name], jnp.bfloat16)
    ours, expected = (shapes(named_params(module)) for module in (target, blank))
    assert ours == expected
    assert len(reports[0].unused_kv) == 2 * PRESETS[name].num_kv_shared_layers and not reports[0].other
    assert {*reports[0].loaded, *reports[0].unused_kv} == set(released(name))


# -- tiny trees --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_everywhere", [False, True], ids=["as initialised", "as released"])
@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, w_everywhere, tmp_path):
    """Parameters and logits, bit for bit.  Released files are said to have `/w` at dense MLPs, too."""
    target = random_target(TINY[name])
    tree = tree_of(target)
    if w_everywhere:
        tree = {f"{key}/w" if key.endswith(("gating_einsum", "linear")) else key: x for key, x in tree.items()}
    loaded, report = load_with_report(write(tmp_path / "tree", tree, target.config))
    assert loaded.config == target.config
    assert_same(loaded, target)
    assert {*report.loaded, *report.unused_kv} == set(tree) and not report.other
    assert len(report.unused_kv) == 2 * target.config.num_kv_shared_layers
    tokens = random_tokens(2, 20)
    np.testing.assert_array_equal(gemma4.forward(loaded, tokens).logits, gemma4.forward(target, tokens).logits)


@pytest.fixture(scope="module")
def tree(target) -> dict[str, np.ndarray]:
    return tree_of(target)


@pytest.mark.parametrize("stored", [jnp.bfloat16, jnp.float32])
def test_dtype_is_the_callers(target, tree, stored, tmp_path):
    write(tmp_path / "tree", {key: jnp.asarray(array, stored) for key, array in tree.items()}, target.config)
    as_stored = jax.tree.map(lambda leaf: leaf.astype(stored), target)
    for dtype in (jnp.float32, jnp.bfloat16):
        assert_same(gemma4.load(tmp_path / "tree", dtype), as_stored, dtype)


def test_on_the_devices_of_a_mesh(target, tree, tmp_path):
    """Each parameter has the sharding of the table, not that of the tensor that Orbax read."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    loaded = gemma4.load(write(tmp_path / "there", tree, target.config), mesh=mesh)
    expected = shardings(named_params(target), mesh)
    assert {name: leaf.sharding for name, leaf in named_params(loaded).items()} == expected
    assert_same(loaded, target)


def test_the_embedding_table_tells_the_size(target, tree, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", target.config)
    assert_same(gemma4.load(write(tmp_path / "tree", tree, None)), target)


@pytest.mark.parametrize("has_config", [True, False])
def test_tokens_that_end_a_text(target, tree, has_config, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", target.config)
    write(tmp_path / "tree", tree, target.config if has_config else None)
    (tmp_path / "tree" / "generation_config.json").write_text('{"eos_token_id": [1, 106, 50]}')
    assert gemma4.load(tmp_path / "tree").config.eos_token_ids == (1, 106, 50)
    (tmp_path / "tree" / "generation_config.json").write_text('{"eos_token_id": 64}')
    assert_refused(tmp_path / "tree", "generation_config.json: eos_token_id: expected ids", "0..63, got (64,)")


def test_vision_and_audio_are_left_out_unread(target, tree, tmp_path, monkeypatch, caplog):
    read, asked = deepmind.read_orbax, []
    monkeypatch.setattr(
        deepmind, "read_orbax", lambda path, wanted, found: asked.extend(wanted) or read(path, wanted, found)
    )
    other = {key: np.ones(3, np.float32) for key in VISION_AND_AUDIO}
    write(tmp_path / "tree", tree | other, target.config)
    with caplog.at_level("INFO", "gemma4"):
        loaded, report = load_with_report(tmp_path / "tree")
    assert_same(loaded, target)
    assert set(report.other) == set(other) and len(report.unused_kv) == 4
    assert set(asked) == set(report.loaded) == set(tree) - set(report.unused_kv)
    assert "4 tensors of other parts" in caplog.text and "4 tensors of KV-shared layers left out" in caplog.text


def test_shared_layers_need_no_kv(target, tree, tmp_path):
    unused = ("kv_einsum/w", "key_norm/scale")
    tree = {key: x for key, x in tree.items() if not (key.startswith(("layer_3", "layer_4")) and key.endswith(unused))}
    loaded, report = load_with_report(write(tmp_path / "tree", tree, target.config))
    assert_same(loaded, target)
    assert not report.unused_kv


# -- faults: one clear error each --------------------------------------------------------------------------------------


def assert_refused(directory: Path, *fragments: str, **arguments) -> None:
    common.assert_refused(directory, str(directory), *fragments, **arguments)


def test_all_tensors_that_do_not_fit_are_in_one_message(target, tree, tmp_path):
    tree = dict(tree)
    del tree["final_norm/scale"], tree["layer_2/attn/key_norm/scale"]
    tree["layer_0/attn/q_einsum/w"] = tree["layer_0/attn/q_einsum/w"].swapaxes(1, 2)
    tree["layer_5/attn/kv_einsum/w"] = tree["layer_0/attn/kv_einsum/w"]
    assert_refused(
        write(tmp_path / "tree", tree, target.config),
        "do not fit config.json",
        "2 missing: final_norm/scale [24]; layer_2/attn/key_norm/scale [16]",
        "1 unexpected: layer_5/attn/kv_einsum [2, 1, 24, 8]",
        "1 of another shape: layer_0/attn/q_einsum is [4, 8, 24], expected [4, 24, 8]",
    )


def test_a_tree_that_fits_no_released_size(tree, tmp_path):
    assert_refused(
        write(tmp_path / "tree", tree, None),
        "embedder/input_embedding must tell which model it is: expected [262144, 1536] (E2B), [262144, 2560] (E4B)",
        "got [64, 24]",
        "put its config.json (Hugging Face layout) into",
    )


def test_a_released_size_that_does_not_fit(target, tree, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", target.config)
    tree = {key: x for key, x in tree.items() if key != "layer_1/skip_scale"}
    assert_refused(
        write(tmp_path / "tree", tree, None),
        "do not fit tiny, whose embedding table has this size; if it is another model, put its config.json",
        "1 missing: layer_1/skip_scale [1]",
    )


def test_a_folder_of_orbax_with_another_tree(target, tmp_path):
    """Such as the folder inside a checkpoint of ours."""
    gemma4.save(target, tmp_path / "saved")
    assert_refused(
        tmp_path / "saved" / orbax.FOLDER, "embedder/input_embedding must tell which model", "got no such tensor"
    )


def test_older_trees(target, tree, tmp_path):
    assert_refused(
        write(tmp_path / "flat", {f"transformer/{key}": x for key, x in tree.items()}, target.config),
        "missing: embedder/input_embedding [64, 24]",
        "unexpected: transformer/",
    )


def test_quantised_weights(target, tree, tmp_path):
    write(tmp_path / "tree", tree | {"layer_0/mlp/linear": np.ones((40, 24), np.int8)}, target.config)
    assert_refused(tmp_path / "tree", "layer_0/mlp/linear is stored as int8", "quantised checkpoints are not supported")


def test_weights_past_the_range_of_float16(target, tree, tmp_path):
    key = "layer_0/mlp/linear"
    changed = tree[key].copy()
    changed[3, 5] = 1e5
    write(tmp_path / "tree", tree | {key: changed}, target.config)
    assert_refused(tmp_path / "tree", f"{key} holds 100000.0, past the range of float16; try float32", dtype="float16")
    assert np.isfinite(gemma4.load(tmp_path / "tree", "bfloat16").layers[0].mlp.down_proj.weight[...]).all()


@pytest.mark.parametrize("part", ["manifest.ocdbt", "d", "ocdbt.process_0"])
def test_a_missing_part(target, tree, part, tmp_path):
    path = write(tmp_path / "tree", tree, target.config) / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_refused(tmp_path / "tree", "Orbax cannot read it")


def test_config_of_another_size(tree, tmp_path):
    assert_refused(
        write(tmp_path / "tree", tree, TINY["31B"]), "do not fit config.json", "layer_0/attn/q_einsum is [4, 24, 8]"
    )


def test_tiny_trees_have_the_names_of_released_ones():
    """Otherwise `tree_of`, the inverse above, could use names of its own."""
    kinds = lambda names: {name.split("/", 1)[1] if name.startswith("layer_") else name for name in names}
    for name in SIZES:
        assert kinds(tree_of(random_target(TINY[name]))) == kinds(released(name))


def test_the_data_are_whole():
    assert [len(released(name)) for name in SIZES] == [530, 635, 602, 722]
