"""What transformers 5.22.2 computes at the points that our taps name, in our layouts, through hooks on its modules."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from transformers.models.gemma4 import modeling_gemma4 as modeling


@contextlib.contextmanager
def target_taps(model, batch: int, time: int) -> Iterator[dict[str, np.ndarray]]:
    """While this is open, every forward of `model` over [batch, time] tokens is written down; one at a time."""
    seen: dict[str, np.ndarray] = {}
    inner, config = model.model, model.config

    def keep(name, value):
        value = value.detach().clone()
        seen[name] = (value.float() if value.is_floating_point() else value).numpy()

    def output(module, name, pick=lambda value: value):
        return module.register_forward_hook(lambda _module, _inputs, value: keep(name, pick(value)))

    def inputs(module, name):
        return module.register_forward_pre_hook(lambda _module, values: keep(name, values[0]))

    def unflat(value):  # the router and the experts see tokens in one row
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
        else:  # nothing stands between this point and the scalar
            scalar = layer.layer_scalar.float()
            hooks += [output(layer, at + "after_mlp", lambda value, scalar=scalar: value / scalar)]

    attend, project = modeling.eager_attention_forward, inner.project_per_layer_inputs

    def watched_attend(module, query, key, value, *args, **kwargs):
        out = attend(module, query, key, value, *args, **kwargs)
        at = f"layers.{module.layer_idx}."
        keep(at + "query", query.transpose(1, 2))
        if not module.is_kv_shared_layer:  # of a cache, only what this forward wrote
            keep(at + "key", key.transpose(1, 2)[:, -time:])
            keep(at + "value", value.transpose(1, 2)[:, -time:])
        keep(at + "attention", out[0])
        return out

    def watched_project(*args, **kwargs):
        out = project(*args, **kwargs)
        keep("per_layer_inputs", out)
        return out

    patches = mock.patch.object(modeling, "eager_attention_forward", watched_attend)
    try:
        with patches, mock.patch.object(inner, "project_per_layer_inputs", watched_project):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def drafter_taps(model) -> Iterator[dict[str, torch.Tensor]]:
    """While this is open, a draft step of `model` is written down.  Queries are all that a drafter rotates."""
    seen: dict[str, torch.Tensor] = {}
    points = {name: getattr(model, name) for name in ("pre_projection", "post_projection")} | {"norm": model.model.norm}
    for i, layer in enumerate(model.model.layers):
        points[f"layers.{i}.output"] = layer
        for name in ("input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp"):
            points[f"layers.{i}.{name}"] = getattr(layer, name)
    rotate, layers = modeling.apply_rotary_pos_emb, iter(range(len(model.model.layers)))

    def keep(name):
        return lambda module, args, out: seen.__setitem__(name, (out[0] if isinstance(out, tuple) else out).clone())

    def watched_rotate(*args, **kwargs):
        out = rotate(*args, **kwargs)
        seen[f"layers.{next(layers)}.query"] = out
        return out

    hooks = [module.register_forward_hook(keep(name)) for name, module in points.items()]
    try:
        with mock.patch.object(modeling, "apply_rotary_pos_emb", watched_rotate):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
