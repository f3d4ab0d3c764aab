"""Tensor parallelism: one table that says how each parameter is split over the devices of a mesh.  `load(..., mesh=)` uses it.

Modules hold no sharding.  The table only places the parameters; XLA's partitioner works out which part of a product each device
computes, and where devices add or exchange results.  Attention is split by heads and the MLP by its hidden width, so that each
needs one sum over devices, at its end (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

Only experts are split along d, the axis of the residual stream: with other parameters the partitioner would split the stream,
too, and then each norm is a sum over devices.  A parameter that the number of devices does not divide is whole on each of them
(`footprint` reports these).

Tested on virtual CPU devices only.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Params = Mapping[str, jax.Array | jax.ShapeDtypeStruct]

AXIS = "model"  # the mesh's only axis
MAX_UNDIVIDED = 0.1  # warn if more than this share of a device's parameters should have been split and is not
log = logging.getLogger(__name__)

# A path, with * for a layer's number, and the axis along which it is split.  Linear weights are [in, out].
SPLIT = {
    "embed_tokens.weight": P(AXIS, None),  # [v, d] by token; logits come out split, too
    "layers.*.self_attn.q_proj.weight": P(None, AXIS),  # [d, n h] by query head
    "layers.*.self_attn.k_proj.weight": P(None, AXIS),  # [d, k h] by KV head, and so are caches
    "layers.*.self_attn.v_proj.weight": P(None, AXIS),
    "layers.*.self_attn.o_proj.weight": P(AXIS, None),  # [n h, d] by query head
    "layers.*.mlp.gate_proj.weight": P(None, AXIS),  # [d, f]
    "layers.*.mlp.up_proj.weight": P(None, AXIS),
    "layers.*.mlp.down_proj.weight": P(AXIS, None),  # [f, d]
    # Experts along d, although the stream follows.  Split by expert, all of them would be sent to every device at each
    # forward pass, since `fast.experts` picks them by number; by f, the gate and the up of a column lie on two devices.
    "layers.*.experts.gate_up_proj": P(None, None, AXIS),  # [e, 2 f, d]
    "layers.*.experts.down_proj": P(None, AXIS, None),  # [e, d, f]
    "per_layer_embeddings.embed_tokens_per_layer.weight": P(AXIS, None),  # [v, layers p] by token
    "layers.*.per_layer_input_gate.weight": P(None, AXIS),  # [d, p]
    "layers.*.per_layer_projection.weight": P(AXIS, None),  # [p, d]
}
WHOLE = (
    "norm.weight",
    "layers.*.input_layernorm.weight",
    "layers.*.self_attn.q_norm.weight",
    "layers.*.self_attn.k_norm.weight",
    "layers.*.post_attention_layernorm.weight",
    "layers.*.pre_feedforward_layernorm.weight",
    "layers.*.post_feedforward_layernorm.weight",
    "layers.*.layer_scalar",
    "layers.*.router.proj.weight",  # small; every device runs the router itself
    "layers.*.router.scale",
    "layers.*.router.per_expert_scale",
    "layers.*.post_feedforward_layernorm_1.weight",
    "layers.*.pre_feedforward_layernorm_2.weight",
    "layers.*.post_feedforward_layernorm_2.weight",
    # [d, layers p]: a prefill reads some layers' columns alone, and would have to gather them.
    "per_layer_embeddings.per_layer_model_projection.weight",
    "per_layer_embeddings.per_layer_projection_norm.weight",
    "layers.*.post_per_layer_input_norm.weight",
    "pre_projection.weight",  # a drafter's, between two residual streams
    "post_projection.weight",
    "masked_embedding.centroids.weight",
    "masked_embedding.token_ordering",
)
TABLE = SPLIT | dict.fromkeys(WHOLE, P())
# A clustered head reads one table row in 64, scattered over the table; with a split table, devices would send rows to each
# other at every draft step.  Whole, the table takes 134 MB of each device (E2B and E4B in bfloat16).
TABLE_OF_CLUSTERED = TABLE | {"embed_tokens.weight": P()}


def specs(params: Params, devices: int) -> dict[str, P]:
    """The split of each parameter of a target or a drafter (`checkpoints.params.named_params`) over `devices`.

    From the table; a parameter whose heads or width `devices` does not divide is not split.
    Errors: ValueError for a path that the table lacks.
    """

    def divides(name: str, spec: P) -> bool:
        return _parts(name, params, spec) % devices == 0

    return {name: spec if spec == P() or divides(name, spec) else P() for name, spec in _wanted(params).items()}


def shardings(params: Params, mesh: Mesh) -> dict[str, NamedSharding]:
    """`specs` on the devices of a mesh.  Errors: as `specs` and `automatic`.  Logs a warning if much cannot be split."""
    mesh = automatic(mesh)
    memory = footprint(params, mesh.size)
    if sum(memory.undivided.values()) > MAX_UNDIVIDED * memory.each:
        log.warning("%s", memory)
    return {name: NamedSharding(mesh, spec) for name, spec in specs(params, mesh.size).items()}


def kv_sharding(kv_heads: int, mesh: Mesh) -> NamedSharding:
    """The split of a layer's K/V in a cache, [b, k, s, h]: by KV head, like their projections, if `mesh` divides the heads."""
    mesh = automatic(mesh)
    return NamedSharding(mesh, P() if kv_heads % mesh.size else P(None, AXIS))


def automatic(mesh: object) -> Mesh:
    """The same devices, on an axis that is left to the partitioner (AxisType.Auto).

    In jax 0.10, `jax.make_mesh` makes an explicit axis, for which each lookup and product would have to name the sharding of
    its result.  (Running a model under `jax.set_mesh` of such a mesh is refused by JAX for the same reason.)
    Errors: ValueError unless the mesh has one axis, and that is called "model".
    """
    if not isinstance(mesh, Mesh) or mesh.axis_names != (AXIS,):
        got = f"axes {mesh.axis_names}" if isinstance(mesh, Mesh) else f"{mesh!r:.80}"
        raise ValueError(f'mesh: expected one axis, as in jax.make_mesh((8,), ("{AXIS}",)), got {got}')
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))


def mesh_of(weight: jax.Array) -> Mesh | None:
    """The mesh on which `shardings` put this weight; None for one that is elsewhere, or traced."""
    if isinstance(weight, Tracer) or not isinstance(weight.sharding, NamedSharding):
        return None
    mesh = weight.sharding.mesh
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names == (AXIS,) else None


class Footprint(NamedTuple):
    """The memory of a model's parameters, in bytes; str() gives a few lines."""

    devices: int
    total: int
    each: int  # on every device
    undivided: dict[str, int]  # the part of `each` that the table would split, but that `devices` does not divide

    def __str__(self) -> str:
        share = f"{self.each / 1e6:,.1f} of {self.total / 1e6:,.1f} MB ({self.each / self.total:.1%})"
        lines = [f"each of {self.devices} devices holds {share} of the parameters"]
        if self.undivided:
            lines.append(f"whole on each, because {self.devices} does not divide their heads or width:")
        for path, count in Counter(map(_path, self.undivided)).items():
            size = sum(size for name, size in self.undivided.items() if _path(name) == path)
            lines.append(f"  {path}: {count}, together {size / 1e6:,.1f} MB")
        return "\n".join(lines)


def footprint(params: Params, devices: int) -> Footprint:
    """The memory that each of `devices` needs; shapes suffice (`checkpoints.params.shape_only`).  Errors: as `specs`."""
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in params.items()}
    split = {name for name, spec in specs(params, devices).items() if spec != P()}
    undivided = {name: sizes[name] for name, spec in _wanted(params).items() if spec != P() and name not in split}
    each = sum(size // devices if name in split else size for name, size in sizes.items())
    return Footprint(devices, sum(sizes.values()), each, undivided)


def _wanted(params: Params) -> dict[str, P]:
    """The table's entry for each parameter."""
    table = TABLE_OF_CLUSTERED if "masked_embedding.token_ordering" in params else TABLE
    if lacking := [name for name in params if _path(name) not in table]:
        raise ValueError(f"{lacking[0]}: gemma4/sharding.py has no entry for this parameter; add one to SPLIT or WHOLE")
    return {name: table[_path(name)] for name in params}


def _path(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _parts(name: str, params: Params, spec: P) -> int:
    """The number of equal parts it can be split into: whole heads in attention, else table rows or columns."""
    size = params[name].shape[tuple(spec).index(AXIS)]
    layer, attention, _ = name.partition("self_attn.")
    return size // params[f"{layer}{attention}q_norm.weight"].shape[0] if attention else size
