"""Checkpoints as transformers' `save_pretrained` writes them: every layout, with its vision and audio parts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
)
from transformers.models.gemma4_unified.configuration_gemma4_unified import Gemma4UnifiedConfig
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedForConditionalGeneration

import drafter
import gemma4
from drafter.hf_config import drafter_json
from gemma4.checkpoints.hf_config import target_json
from gemma4.checkpoints.target import load_with_report
from tests.models import (
    CLUSTERED,
    TINY,
    TINY_DRAFTERS,
    drafter_config,
    random_drafter,
    random_target,
    random_tokens,
)

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
}
AUDIO = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "output_proj_dims": 24,
    "subsampling_conv_channels": [8, 4],
}
UNIFIED_VISION = {
    "mm_embed_dim": 24,
    "mm_posemb_size": 8,
    "model_patch_size": 12,
    "patch_size": 4,
    "num_soft_tokens": 4,
    "output_proj_dims": 24,
}
UNIFIED_AUDIO = {"audio_embed_dim": 8, "audio_samples_per_token": 8, "hidden_size": 8, "output_proj_dims": 8}


def multimodal(layout: str) -> torch.nn.Module:
    """A tiny model of the layout, with the parts that the released one has, in random weights."""
    torch.manual_seed(0)
    text = target_json(TINY[layout])
    if layout == "12B":
        text["model_type"] = "gemma4_unified_text"
        config = Gemma4UnifiedConfig(text_config=text, vision_config=UNIFIED_VISION, audio_config=UNIFIED_AUDIO)
        return Gemma4UnifiedForConditionalGeneration(config).eval()
    audio = AUDIO if layout in ("E2B", "E4B") else None
    config = Gemma4Config(text_config=text, vision_config=VISION, audio_config=audio)
    config.text_config._experts_implementation = "eager"
    return Gemma4ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("layout", TINY)
def test_a_target_with_all_of_its_parts(layout, tmp_path):
    model = multimodal(layout)
    model.save_pretrained(tmp_path)
    target, report = load_with_report(tmp_path)
    parts = {name.removeprefix("model.").split(".")[0] for name in report.other}
    assert (
        parts
        == {
            "E2B": {"vision_tower", "audio_tower", "embed_vision", "embed_audio"},
            "E4B": {"vision_tower", "audio_tower", "embed_vision", "embed_audio"},
            "12B": {"vision_embedder", "embed_vision", "embed_audio"},
            "26B-A4B": {"vision_tower", "embed_vision"},
            "31B": {"vision_tower", "embed_vision"},
        }[layout]
    )
    tokens = random_tokens(2, 11)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(gemma4.forward(target, tokens).logits, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layout", TINY)
def test_an_assistant(layout, tmp_path):
    torch.manual_seed(0)
    config = Gemma4AssistantConfig.from_dict(drafter_json(TINY_DRAFTERS[layout]))
    model = Gemma4AssistantForCausalLM(config)
    if layout in CLUSTERED:
        model.masked_embedding.token_ordering.copy_(torch.randperm(config.text_config.vocab_size))
    model.save_pretrained(tmp_path)
    loaded = drafter.load(tmp_path)
    assert loaded.config == TINY_DRAFTERS[layout]
    assert jnp.isfinite(loaded.embed_tokens.weight[...]).all()


@pytest.mark.parametrize(("layout", "clustered"), [("E2B", True), ("E2B", False), ("12B", False), ("31B", False)])
def test_transformers_reads_every_tensor_of_an_exported_drafter(layout, clustered, tmp_path):
    ours = random_drafter(drafter_config(TINY[layout], clustered=clustered))
    drafter.export_hf(ours, tmp_path / "drafter")
    theirs, report = Gemma4AssistantForCausalLM.from_pretrained(tmp_path / "drafter", output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    torch.testing.assert_close(
        theirs.pre_projection.weight.detach(), torch.tensor(np.asarray(ours.pre_projection.weight[...]).T)
    )
    if clustered:
        assert theirs.masked_embedding.token_ordering.tolist() == ours.masked_embedding.token_ordering[...].tolist()
    assert theirs.generation_config.num_assistant_tokens == 4 and theirs.generation_config.is_assistant
    theirs.save_pretrained(tmp_path / "theirs")
    again = drafter.load(tmp_path / "theirs")
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again, ours)


# -- forms of a file that are rare -------------------------------------------------------------------------------------


def text_model(**change) -> Gemma4ForCausalLM:
    torch.manual_seed(0)
    return Gemma4ForCausalLM(Gemma4TextConfig.from_dict(target_json(TINY["E2B"]) | change)).eval()


def assert_same_logits(model: torch.nn.Module, target: gemma4.Gemma4, tokens) -> None:
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(gemma4.forward(target, tokens).logits, expected, atol=2e-5 * np.abs(expected).max())


def test_a_vocabulary_that_transformers_has_grown(tmp_path):
    """It grows the table of per-layer embeddings, too."""
    model = text_model()
    model.resize_token_embeddings(70, mean_resizing=False)
    model.save_pretrained(tmp_path)
    target = gemma4.load(tmp_path)
    assert target.config.vocab_size == target.config.vocab_size_per_layer_input == 70
    assert_same_logits(model, target, [[3, 69, 64, 5]])


def test_a_table_of_per_layer_embeddings_that_did_not_grow(tmp_path):
    """transformers loads it and fails at the first token past that table, which its own output may be.  Here it is refused."""
    text_model(vocab_size_per_layer_input=50).save_pretrained(tmp_path)
    model = Gemma4ForCausalLM.from_pretrained(tmp_path)
    model(input_ids=torch.tensor([[3, 49]]))
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[3, 50]]))
    with pytest.raises(
        gemma4.CheckpointError, match=r"vocab_size_per_layer_input: expected at least vocab_size \(64\)"
    ):
        gemma4.load(tmp_path)


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
@pytest.mark.parametrize("both", [True, False])
def test_rope_under_its_older_name(both, tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = json.loads(json.dumps(config["rope_parameters"]))
    rope["sliding_attention"]["rope_theta"], rope["full_attention"]["rope_theta"] = 100.0, 50.0
    rope["full_attention"]["partial_rotary_factor"] = 0.5
    if not both:
        del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": rope}))
    target, tokens = gemma4.load(tmp_path), random_tokens(2, 11)
    assert (target.config.sliding_rope_theta, target.config.full_rope_theta) == (100.0, 50.0)
    assert_same_logits(Gemma4ForCausalLM.from_pretrained(tmp_path).eval(), target, tokens)


def test_stored_frequencies_of_rope(tmp_path):
    """Neither of the two reads them."""
    model = text_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    save_file(load_file(file) | stored, file, metadata={"format": "pt"})
    model = Gemma4ForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(model, gemma4.load(tmp_path), random_tokens(2, 11))


# -- a vocabulary head of its own --------------------------------------------------------------------------------------


def with_head(directory, change: float):
    """A checkpoint whose file has an lm_head.weight: the embedding table plus `change` in its last number."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += change
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [0.0, 1e-3])
def test_a_head_in_the_file_is_the_embedding_table(change, tmp_path):
    gemma4.export_hf(random_target(TINY["31B"]), tmp_path / "target")
    drafter.export_hf(random_drafter(TINY_DRAFTERS["31B"]), tmp_path / "drafter")
    for package, name in ((gemma4, "target"), (drafter, "drafter")):
        with_head(tmp_path / name, change)
        if change == 0:
            package.load(tmp_path / name)
        else:
            with pytest.raises(gemma4.CheckpointError, match=r"lm_head\.weight .* differs from model\.embed_tokens"):
                package.load(tmp_path / name)
