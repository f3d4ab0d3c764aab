"""transformers' models with our weights: what the parity tests compare with.  Needs torch and transformers 5.22.2."""

import numpy as np
import torch
from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

from drafter import Drafter
from drafter.hf_config import drafter_json
from gemma4 import Gemma4
from gemma4.checkpoints.hf_config import target_json
from gemma4.checkpoints.params import linear_weights, named_params
from gemma4.checkpoints.target import hf_name

torch.set_num_threads(1)  # at these sizes a second thread would only wait


def torch_target(target: Gemma4) -> Gemma4ForCausalLM:
    config = Gemma4TextConfig.from_dict(target_json(target.config))
    config._experts_implementation = "eager"  # the grouped one refuses sizes as small as ours
    model = Gemma4ForCausalLM(config)
    return _filled(model, {f"model.{hf_name(name)}": value for name, value in _tensors(target).items()})


def torch_drafter(draft_model: Drafter) -> Gemma4AssistantForCausalLM:
    model = Gemma4AssistantForCausalLM(Gemma4AssistantConfig.from_dict(drafter_json(draft_model.config)))
    outside = ("pre_projection", "post_projection", "masked_embedding")
    name_of = lambda name: name if name.startswith(outside) else f"model.{name}"
    return _filled(model, {name_of(name): value for name, value in _tensors(draft_model).items()})


def _tensors(module) -> dict[str, torch.Tensor]:
    transposed = linear_weights(module)
    arrays = {name: np.array(value) for name, value in named_params(module).items()}
    return {name: torch.tensor(array.T if name in transposed else array) for name, array in arrays.items()}


def _filled(model, tensors: dict[str, torch.Tensor]):
    """Every tensor of the model is set, but for the head, which is the embedding table again."""
    report = model.load_state_dict(tensors, strict=False)
    assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.weight"}, report
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval()
