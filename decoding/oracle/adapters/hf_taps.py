"""The values of transformers 5.22.2 at the points that our taps name, in our layouts, through hooks on its modules."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle
from transformers.models.gemma4 import modeling_gemma4 as modeling


@contextlib.contextmanager
def target_taps(model: Any, batch: int, time: int) -> Iterator[dict[str, np.ndarray]]:
    """Within the block, the taps of the last forward of `model` over [batch, time] tokens."""
    taps: dict[str, np.ndarray] = {}
    inner, config = model.model, model.config

    def keep(name: str, value: torch.Tensor) -> None:
        value = value.detach().clone()
        taps[name] = (value.float() if value.is_floating_point() else value).numpy()

    def output(module: torch.nn.Module, name: str, pick: Callable[[Any], Any] = lambda value: value) -> RemovableHandle:
        return module.register_forward_hook(lambda _module, _inputs, value: keep(name, pick(value)))

    def inputs(module: torch.nn.Module, name: str) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _module, values: keep(name, values[0]))

    def unflat(
        value: torch.Tensor,
    ) -> torch.Tensor:  # the router and the experts get the tokens of all rows along one axis
        return value.reshape(batch, time, -1)

    hooks = [output(inner.embed_tokens, "embedding"), output(inner.norm, "hidden")]
    hooks += [output(model, "logits", lambda out: out.logits)]
    for i, layer in enumerate(inner.layers):
        at = f"layers.{i}."
        hooks += [
            output(layer.input_layernorm, at + "input_layernorm"),
            output(layer.self_attn, at + "self_attn", lambda value: value[0]),
            inputs(layer.pre_feedforward_layernorm, at + "after_attention"),
            output(layer.pre_feedforward_layernorm, at + "pre_feedforward_layernorm"),
            output(layer.mlp, at + "mlp"),
            output(layer, at + "output"),
        ]
        if config.enable_moe_block:
            hooks += [
                output(layer.router.proj, at + "router_scores", unflat),
                output(layer.router, at + "router_weights", lambda value: unflat(value[1])),
                output(layer.router, at + "router_experts", lambda value: unflat(value[2])),
                output(layer.experts, at + "experts", unflat),
            ]
        if config.hidden_size_per_layer_input:
            hooks += [
                inputs(layer.per_layer_input_gate, at + "after_mlp"),
                output(layer.per_layer_projection, at + "per_layer_projection"),
            ]
        else:  # here only the scalar follows
            scalar = layer.layer_scalar.float()
            hooks += [output(layer, at + "after_mlp", lambda value, scalar=scalar: value / scalar)]

    attend, project = modeling.eager_attention_forward, inner.project_per_layer_inputs

    def watched_attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        out = attend(module, query, key, value, *args, **kwargs)
        at = f"layers.{module.layer_idx}."
        keep(at + "query", query.transpose(1, 2))
        if not module.is_kv_shared_layer:  # of a cache, only what this forward wrote
            keep(at + "key", key.transpose(1, 2)[:, -time:])
            keep(at + "value", value.transpose(1, 2)[:, -time:])
        keep(at + "attention", out[0])
        return out

    def watched_project(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = project(*args, **kwargs)
        keep("per_layer_inputs", out)
        return out

    patches = mock.patch.object(modeling, "eager_attention_forward", watched_attend)
    try:
        with patches, mock.patch.object(inner, "project_per_layer_inputs", watched_project):
            yield taps
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def drafter_taps(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Within the block, the taps of the one draft step of `model` that may run in it.  A drafter rotates only queries."""
    taps: dict[str, torch.Tensor] = {}
    points = {name: getattr(model, name) for name in ("pre_projection", "post_projection")} | {"norm": model.model.norm}
    for i, layer in enumerate(model.model.layers):
        points[f"layers.{i}.output"] = layer
        for name in ("input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp"):
            points[f"layers.{i}.{name}"] = getattr(layer, name)
    rotate, layers = modeling.apply_rotary_pos_emb, iter(range(len(model.model.layers)))

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, out: taps.__setitem__(name, (out[0] if isinstance(out, tuple) else out).clone())

    def watched_rotate(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = rotate(*args, **kwargs)
        taps[f"layers.{next(layers)}.query"] = out
        return out

    hooks = [module.register_forward_hook(keep(name)) for name, module in points.items()]
    try:
        with mock.patch.object(modeling, "apply_rotary_pos_emb", watched_rotate):
            yield taps
    finally:
        for hook in hooks:
            hook.remove()
