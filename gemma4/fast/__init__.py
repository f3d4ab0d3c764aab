"""The same numbers sooner: forms of the formulas that suit a machine.  Nothing here is needed to understand the model.

`for_backend(model)` gives a model its twins, and only this file asks which machine it is.  A twin is a subclass of the
reference's module that holds the same weights and overrides one method; `tests/fast` holds each against the reference.

    attention.py             the twin of Attention
    attention_scores.py      the scores of few queries
    long_attention.py        long caches, read in blocks (online softmax, as in FlashAttention)
    embedding.py             one row of a table that is split over devices
    per_layer_embeddings.py  the inputs of some layers alone
    experts.py               each token's own experts only
    target.py                the twin of Gemma4: prefill that runs the upper layers for one token alone
    argmax.py                two plain reductions
    linear.py                linear maps for training
    memoize.py               arrays that are computed from weights once
    twin.py                  how a twin is made
"""

import copy

import jax
from flax import nnx

from gemma4.fast.attention import attention_twin
from gemma4.fast.embedding import embedding_twin
from gemma4.fast.experts import experts_twin
from gemma4.fast.target import target_twin
from gemma4.model import DecoderLayer, Gemma4


def this_backend() -> str:
    """cpu, gpu or tpu: where JAX runs."""
    return jax.default_backend()


def for_backend(target: Gemma4, backend: str | None = None) -> Gemma4:
    """The same target with the twins that suit `backend` (that on which JAX runs, unless given).

    It shares all weights, and holds a few arrays that are computed from them once.  It is made to run, not to be saved
    (`gemma4.save` refuses it) or trained (see `linear.py`).
    """
    backend = backend or this_backend()
    twin = target_twin(target)
    twin.embed_tokens = embedding_twin(target.embed_tokens, backend)
    if target.config.hidden_size_per_layer_input:
        tables = twin.per_layer_embeddings
        tables.embed_tokens_per_layer = embedding_twin(tables.embed_tokens_per_layer, backend)
    twin.layers = nnx.List([layer_for_backend(layer, backend) for layer in target.layers])
    return twin


def layer_for_backend(layer: DecoderLayer, backend: str) -> DecoderLayer:
    """A decoder layer, of a target or a drafter, with its twins."""
    twin = copy.copy(layer)
    twin.self_attn = attention_twin(layer.self_attn, backend)
    if layer.has_experts:
        twin.experts = experts_twin(layer.experts, backend)
    return twin
