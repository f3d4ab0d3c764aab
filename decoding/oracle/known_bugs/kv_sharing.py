"""Layers that read another layer's K/V: from where, in which state, and at which position."""

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
        fix="Only owners write; sharing layers pass their source's K/V through.",
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
        what="A layer that shares K/V reads a cache of its own, which nobody fills.",
        seen_in=(Seen("vLLM", "https://github.com/vllm-project/vllm/pull/43185"),),
        fix="Give sharing layers their source's K/V: config.kv_source.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "past = kvs[source] if source < i else": "past = LayerKV(*[jnp.zeros_like(x) for x in kvs[source]]) "
            "if source < i else"
        },
    ),
    Mutant(
        name="shared-query-turned-too-far",
        bugs=("B06",),
        rank=2,
        shows_at="E2B/chunked/layers.3.query",
        what="Sharing layers turn their queries by the source's cache length after its update, too far by the block.",
        seen_in=(
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/9d5eacf7"),
            Seen("mlx-lm", "https://github.com/ml-explore/mlx-lm/pull/1702"),
        ),
        fix="Take the position before any layer writes, once, for all layers.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "        kvs: list[LayerKV] = []": """\
        late = dict(places)
        if cache:
            later = cache._replace(length=cache.length + tokens.shape[1])
            late = {kind: place._replace(angles=self._place(kind, tokens, later).angles) for kind, place in places.items()}
        kvs: list[LayerKV] = []""",
            "past, places[config.layer_types[i]],": "past, (late if source < i else places)[config.layer_types[i]],",
        },
    ),
    Mutant(
        name="shared-layer-reads-the-evicted-ring",
        bugs=("B24", "B25"),
        rank=3,
        shows_at="E2B/forward/layers.3.attention",
        what="Sharing layers read the ring as it is after the block: keys that its earlier queries need are gone.",
        seen_in=(
            Seen("Ollama", "https://github.com/ollama/ollama/commit/b9cb53540"),
            Seen("mistral.rs", "https://github.com/EricLBuehler/mistral.rs/commit/9196ed312"),
        ),
        fix="Pass on the K/V that the source attended with, not the state of its cache.",
        function="gemma4.model.Gemma4.__call__",
        change={
            "                x, kv = layer(": """\
                if source < i and config.is_sliding(i):
                    kept = places[config.layer_types[i]]
                    places[config.layer_types[i]] = kept._replace(seen=kept.seen & kept.seen[:, -1:])
                x, kv = layer("""
        },
    ),
    Mutant(
        name="shared-layer-reads-the-first-owner",
        rank=2,
        shows_at="E2B/forward/layers.3.attention",
        what="A sharing layer reads the first owner of its type.",
        fix="The last owner of the same type before the shared tail.",
        function="gemma4.config.Config.kv_source",
        change={"layer for layer, kind in enumerate(owners)": "owners.index(kind) for kind in owners"},
    ),
)
