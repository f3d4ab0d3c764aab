"""RoPE: which pairs rotate, how fast, and by which angle."""

from decoding.oracle.known_bugs.mutant import Mutant, Seen

MUTANTS = (
    Mutant(
        name="rope-pairs-inside-the-turning-part",
        bugs=("B29",),
        rank=5,
        shows_at="E2B/rope/full_attention.near",
        what="Pairs (i, i + r/2) of the first r dimensions rotate, instead of (i, i + head_dim/2).",
        seen_in=(
            Seen("Megatron-Bridge", "https://github.com/NVIDIA-NeMo/Megatron-Bridge/issues/4195"),
            Seen("coreai-models", "https://github.com/apple/coreai-models/issues/66"),
        ),
        fix="Pad the frequencies with zeros to half the head, and form pairs across the whole head.",
        function="gemma4.functional.apply_rope",
        change={
            """
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
""": """
    pair, rotating = jnp.arange(sin.shape[-1]), (sin != 0).any(axis=(0, 1, 2)).sum()
    of_first = jnp.where(pair < rotating, pair, pair + rotating)
    of_second = jnp.where(pair < rotating, pair + rotating, pair + sin.shape[-1])
    first, second = x[..., of_first], x[..., of_second]
    return x.at[..., of_first].set(first * cos - second * sin).at[..., of_second].set(second * cos + first * sin)
"""
        },
    ),
    Mutant(
        name="rope-exponent-over-the-turning-part",
        bugs=("B30",),
        rank=5,
        shows_at="E2B/rope/full_attention.near",
        what="The exponent of the frequencies divides by the number of rotating dimensions, not by the whole head.",
        seen_in=(
            Seen("pegainfer", "https://github.com/pegainfer-project/pegainfer/issues/820"),
            Seen("pie", "https://github.com/pie-project/pie/pull/603"),
        ),
        fix="Divide by head_dim: proportional RoPE keeps the spacing of the full head.",
        function="gemma4.functional.inverse_frequencies",
        change={"dtype=np.float64) / head_dim": "dtype=np.float64) / (rotary_factor * head_dim)"},
    ),
    Mutant(
        name="rope-turns-every-pair",
        bugs=("B31",),
        rank=5,
        shows_at="E2B/rope/full_attention.near",
        what="Full layers rotate all pairs: partial_rotary_factor is taken as 1.",
        seen_in=(
            Seen("mlx-lm", "https://github.com/ml-explore/mlx-lm/commit/f26fddfd"),
            Seen("mlx-vlm", "https://github.com/Blaizzy/mlx-vlm/commit/43b9b207"),
        ),
        fix="Rotate a quarter of the pairs in full layers, also where the configuration omits the factor.",
        function="gemma4.functional.inverse_frequencies",
        change={"int(rotary_factor * head_dim // 2)": "pairs"},
    ),
    Mutant(
        name="rope-half-precision-frequencies",
        bugs=("B32",),
        rank=5,
        shows_at="E2B/rope/sliding_attention.near",
        what="Frequencies are rounded to float16.",
        seen_in=(Seen("imp", "https://github.com/kekzl/imp/pull/9"),),
        fix="Keep frequencies in float32 or better; the error grows with the position.",
        function="gemma4.functional.inverse_frequencies",
        change={".astype(np.float32)": ".astype(np.float16).astype(np.float32)"},
    ),
    Mutant(
        name="rope-bfloat16-angles",
        bugs=("B32",),
        rank=5,
        shows_at="E2B/rope/sliding_attention.near",
        what="Angles are computed in bfloat16.",
        seen_in=(Seen("imp", "https://github.com/kekzl/imp/pull/9"),),
        fix="Multiply positions and frequencies in float32, whatever the dtype of the model.",
        function="gemma4.functional.rope_cos_sin",
        change={
            "positions[..., None].astype(jnp.float32) * frequencies": "(positions[..., None].astype(jnp.bfloat16) * "
            "jnp.asarray(frequencies, jnp.bfloat16)).astype(jnp.float32)"
        },
    ),
    Mutant(
        name="rope-neighbours-paired",
        rank=5,
        shows_at="E2B/rope/sliding_attention.near",
        what="Pairs are neighbours (2i, 2i + 1), as in the RoPE paper, instead of (i, i + head_dim/2).",
        fix="Split the head into halves; or permute the weights of q_proj and k_proj when loading.",
        function="gemma4.functional.apply_rope",
        change={
            "jnp.split(x, 2, axis=-1)": "(x[..., 0::2], x[..., 1::2])",
            "jnp.concatenate([": "jnp.stack([",
            "first * sin], axis=-1)": "first * sin], axis=-1).reshape(x.shape)",
        },
    ),
    Mutant(
        name="rope-turns-backwards",
        rank=5,
        shows_at="E2B/rope/sliding_attention.near",
        what="The sine has the wrong sign: relative positions change their sign.",
        fix="first * cos - second * sin, second * cos + first * sin.",
        function="gemma4.functional.apply_rope",
        change={
            "first * cos - second * sin": "first * cos + second * sin",
            "second * cos + first * sin": "second * cos - first * sin",
        },
    ),
    Mutant(
        name="rope-one-theta-for-all-layers",
        rank=5,
        shows_at="E2B/rope/full_attention.near",
        what="Full layers use the base frequency of the sliding ones.",
        fix="Read rope_parameters by layer type: 10,000 in sliding layers, 1,000,000 in full ones.",
        function="gemma4.config.Config.rope",
        change={"self.full_rope_theta": "self.sliding_rope_theta"},
    ),
)
