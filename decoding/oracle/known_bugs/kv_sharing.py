"""Layers that read another layer's K/V: from which layer, in which state, and at which position."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="shared-layer-writes-dummies",
        bugs=("B03",),
        rank=2,
        shows_at="E2B/chunked/layers.1.attention",
        what="A layer that shares K/V also writes its own, a dummy, into its source's cache.",
        seen_in=(
            Seen("tpu-inference", "https://github.com/vllm-project/tpu-inference/commit/ee1e17a12"),
            Seen("vllm-ascend", "https://github.com/vllm-project/vllm-ascend/pull/11791"),
        ),
        fix="Only owners write; sharing layers only read their source's K/V.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "            kvs.append(kv)\n": """\
            kvs.append(kv)
            if source < i and cache:
                from gemma4.cache import write

                dummy = jnp.zeros((*tokens.shape, kv.key.shape[1], kv.key.shape[3]))
                kvs[source] = write(kvs[source], dummy, dummy, cache.length)
"""
        },
    ),
    Mutant(
        name="shared-layer-reads-its-own-empty-cache",
        bugs=("B04",),
        rank=2,
        shows_at="E2B/forward/layers.3.attention",
        what="A layer that shares K/V reads a cache of its own, which stays empty.",
        seen_in=(Seen("vLLM", "https://github.com/vllm-project/vllm/pull/43185"),),
        fix="Give sharing layers their source's K/V: config.kv_source.",
        function="gemma4.model.Gemma4.__call__",
        change={"kv = kvs[source]": "kv = LayerKV(*[jnp.zeros_like(x) for x in kvs[source]])"},
    ),
    Mutant(
        name="shared-query-turned-too-far",
        bugs=("B06",),
        rank=2,
        shows_at="E2B/chunked/layers.3.query",
        what="Sharing layers rotate their queries by the cache length after its update, too far by a block.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/9d5eacf7"),
            Seen("mlx-lm", "https://github.com/ml-explore/mlx-lm/pull/1702"),
        ),
        fix="Take the position once for all layers, before any layer writes.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "        kvs: list[LayerKV] = []": """\
        late = dict(inputs)
        if cache:
            later = cache._replace(length=cache.length + tokens.shape[1])
            for kind, of_kind in inputs.items():
                late[kind] = of_kind._replace(cos_sin=self.attention_inputs(kind, tokens, later).cos_sin)
        kvs: list[LayerKV] = []""",
            "kv, inputs[config.layer_types[i]],": "kv, (late if source < i else inputs)[config.layer_types[i]],",
        },
    ),
    Mutant(
        name="shared-layer-reads-the-evicted-ring",
        bugs=("B24", "B25"),
        rank=3,
        shows_at="E2B/forward/layers.3.attention",
        what="Sharing layers read the ring after the block is written: keys that its earlier queries need are gone.",
        seen_in=(
            Seen("Ollama", "https://github.com/ollama/ollama/commit/b9cb53540"),
            Seen("mistral.rs", "https://github.com/EricLBuehler/mistral.rs/commit/9196ed312"),
        ),
        fix="Give sharing layers the K/V that the source attended to, not its cache after the update.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "                x, kv = layer(": """\
                if source < i and config.is_sliding(i):
                    of_kind = inputs[config.layer_types[i]]
                    inputs[config.layer_types[i]] = of_kind._replace(mask=of_kind.mask & of_kind.mask[:, -1:])
                x, kv = layer("""
        },
    ),
    Mutant(
        name="shared-layer-reads-the-first-owner",
        rank=2,
        shows_at="E2B/forward/layers.3.attention",
        what="A sharing layer reads the first owner of its type.",
        fix="The last owner of the same type.",
        function="gemma4.config.Config.kv_source",
        change={
            "last_owners = self._last_owners()": "owners = self.layer_types[: self.first_kv_shared_layer]\n"
            "        last_owners = {kind: owners.index(kind) for kind in owners}"
        },
    ),
)
