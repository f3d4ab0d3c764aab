"""Published speed-ups, and what the cost model says of the same setup; `gemma4-mtp plan --claims` prints the page.

No constant here is fitted to a claim.  Devices are at their best, and kernels start in no time, since the engines are others.
Where a report states how many drafts were accepted, that number goes in, and the speed-up comes out.  Where it does not, the
acceptance that the speed-up would need comes out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from decoding.bench import cost
from decoding.bench.work import Storage
from decoding.planning.architecture import models_of
from decoding.planning.devices import DEVICES, Device
from decoding.planning.plan import Setup, plan

Q8, Q4, FP8 = Storage(8.5, 16), Storage(4.5, 16), Storage(8, 16)  # 32 or 64 weights share a scale (and an offset)
BF16 = Storage()
CONTEXT = 1024  # tokens in the cache, where a report says nothing; the prompts are short

LLAMA = "[llama.cpp #23398](https://github.com/ggml-org/llama.cpp/pull/23398)"
GOOGLE = "[Google's announcement](https://blog.google/innovation-and-ai/technology/developers-tools/multi-token-prediction-gemma-4/)"
NO_SOURCE = "a third-party report; no public source was found again"

HEAD = """\
# Published speed-ups, on paper

What others measured with Gemma 4 and its MTP drafters, and what the cost model of this project says of the same setup
(`gemma4-mtp plan --claims` prints this page; [work.py](../../decoding/bench/work.py),
[cost.py](../../decoding/bench/cost.py) and [plan.py](../../decoding/planning/plan.py) are the model). The model knows
shapes, data sheets and, where a report states it, how many drafts were accepted. It has no constant that was fitted to
a claim, and assumes that a device reaches all of its bandwidth, that launches cost nothing, and that routers choose
experts at random. So tokens per second are upper bounds; speed-ups are not, because what slows both loops cancels.

**How to read a row**: *predicted* uses the acceptance that the report states. *needs* is the acceptance of each draft
at which the model reaches the published speed-up, where none is stated: a claim is plausible if drafters reach that.
For comparison, vLLM's acceptance test expects 64 % to 84 % for E4B with two drafts, and one report on 26B (4 bits, four
drafts) 84 %, 60 %, 39 % and 27 % by position.
"""


class Claim(NamedTuple):
    setup: str
    published: str
    predicted: str
    difference: str


def needed_rate(found: dict, gamma: int, speed_up: float) -> float | None:
    """The acceptance of each draft at which the plan's loop of `gamma` is `speed_up` times as fast; None if none is."""
    entry = next(entry for entry in found["loops"] if entry["draft_length"] == gamma)
    step = found["stages"][0]["seconds"]
    scaled = cost.Times(step / speed_up, entry["seconds_per_round"], 0.0, 0.0)
    return cost.break_even(gamma, scaled)


def predict(
    size: str,
    device: Device | str,
    target: Storage,
    *,
    gamma: Sequence[int],
    acceptance: Sequence[float] = (0.7,),
    batch: int = 1,
    drafter: Storage = BF16,
    count: int = 1,
) -> dict:
    device = DEVICES[device] if isinstance(device, str) else device
    setup = Setup(
        device, count, CONTEXT, batch, gamma, acceptance, target=target, drafter=drafter, counts_kernels=False
    )
    return plan(models_of(size), setup)


def with_tokens(found: dict, gamma: int, tokens: float) -> float:
    """The speed-up of a draft length whose rounds yield `tokens`."""
    entry = next(entry for entry in found["loops"] if entry["draft_length"] == gamma)
    return tokens * found["stages"][0]["seconds"] / entry["seconds_per_round"]


def needs(found: dict, gamma: int, speed_up: float) -> str:
    rate = needed_rate(found, gamma, speed_up)
    return "out of reach" if rate is None else f"needs {rate:.0%}"


def against(predicted: float, published: float) -> str:
    return f"{predicted / published - 1:+.0%}"


def prose(text: str) -> str:
    """A paragraph on one line."""
    return " ".join(text.split())


def dense() -> Iterator[Claim | str]:
    yield "## Up to 3 x"
    for device, bits, gamma, published, source in (
        (
            "h100",
            BF16,
            8,
            125.3 / 40.3,
            "[a report on one H100](https://github.com/gemmaclaw/gemmaclaw/pull/418), 40.3 to 125.3 tokens/s",
        ),
        (
            "gb10",
            FP8,
            4,
            3.52,
            "[a report on GB10](https://suzuki-shoten.dev/analysis/gemma4-mtp-vllm-bug-gb10-1-83x/), code",
        ),
        ("gb10", FP8, 4, 2.53, "the same report, prose"),
        ("h200", BF16, 4, 3.0, GOOGLE + ": up to 3 x, without a setup; here 31B on an H200"),
    ):
        found = predict("31B", device, bits, gamma=(gamma,))
        yield Claim(f"31B, gamma {gamma}, {source}", f"{published:.2f} x", needs(found, gamma, published), "")
    found = predict("31B", "gb10", Q8, gamma=(4,))
    speed = with_tokens(found, 4, 1 + 4 * 0.588)
    yield Claim(
        f"31B in 8 bits on a DGX Spark, gamma 4, 58.8 % of drafts accepted, {LLAMA}: 290 s to 120 s",
        "2.42 x",
        f"predicted {speed:.2f} x",
        against(speed, 290 / 120),
    )
    yield prose(
        """
        The whole claim rests on bandwidth: a verify of five tokens reads what a step reads, so the speed-up is nearly
        the number of tokens a round, less the draft steps. Where acceptance is stated, the model is above what was
        measured: prompts are in those seconds, and so are launches and a head in float32. Prose needs an acceptance
        that drafters have, code a high one.
        """
    )


def b300() -> Iterator[Claim | str]:
    yield "## 31B on a B300: 5.37 tokens a pass"
    found = predict("31B", "b300", BF16, gamma=(7,))
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if 1 + sum(cost.reached(middle, 7)) < 5.37 else (low, middle)
    speed = with_tokens(found, 7, 5.37)
    yield Claim(
        f"gamma 7, temperature 1 ({NO_SOURCE})",
        "5.37 tokens",
        f"{high:.0%} of each draft; {speed:.2f} x from it",
        "no speed stated",
    )
    yield prose(
        """
        5.37 of at most 8 tokens is high for sampled text. Draft steps are what separates 5.37 tokens from the
        speed-up: seven of them read as much as an eighth of a pass.
        """
    )


def mixture() -> Iterator[Claim | str]:
    yield "## 26B-A4B: about 2 x on a large GPU, 2.2 x on Apple silicon at batch 4 to 8"
    by_position = (0.844, 0.599, 0.385, 0.271)
    found = predict("26B-A4B", "rtx-pro-6000", BF16, gamma=range(1, 9))
    rates = {gamma: rate for gamma in range(1, 9) if (rate := needed_rate(found, gamma, 2.0)) is not None}
    easiest = min(rates, key=rates.__getitem__)
    needed = f"needs {rates[easiest]:.0%} of each draft, at gamma {easiest}"
    yield Claim(f"RTX PRO 6000, batch 1, any gamma up to 8, {GOOGLE}", "2 x", needed, "")
    for batch, published in ((1, "no gain"), (4, "2.2 x"), (8, "2.2 x")):
        found = predict("26B-A4B", "m4-max", Q4, gamma=(2, 3, 4), batch=batch, acceptance=by_position)
        best = max(found["loops"], key=lambda entry: entry["speed_up"])
        touched = {entry["draft_length"]: entry["touched"] for entry in found["experts"]}
        gamma = best["draft_length"]
        yield Claim(
            f"an M4 Max, 4 bits, batch {batch}, {GOOGLE}; acceptance by position from "
            "[another report](https://github.com/eugr/spark-vllm-docker/issues/343)",
            published,
            f"predicted {best['speed_up']:.2f} x, gamma {gamma} ({touched[0]:.0f} and {touched[gamma]:.0f} experts read)",
            "" if batch == 1 else against(best["speed_up"], 2.2),
        )
    yield prose(
        """
        Each drafted token may visit other experts, so that a verify reads several times what a step reads: there is
        little to gain at batch 1, as Google says. With random routing the model does not reach 2.2 x at batch 4 to 8
        either. Rows of a batch visit more experts at a step as well, and the ratio falls, but slowly. What would
        close the gap: neighbouring tokens visit the same experts more often than at random, which the model leaves
        out because no public figure states it, and a baseline that is slow at these batch sizes for other reasons (a
        step of few rows is launches on that machine).
        """
    )


def apple_12b() -> Iterator[Claim | str]:
    yield "## 12B in 4 bits on an M5 Max"
    published = {1: 1.80, 2: 2.33, 3: 2.71, 4: 3.13, 5: 3.05, 7: 3.40}
    rate = published[1] - 1
    found = predict("12B", "m5-max", Q4, gamma=tuple(published))
    for gamma, tokens in published.items():
        predicted = 1 + sum(cost.reached(rate, gamma))
        difference = "taken from it" if gamma == 1 else against(predicted, tokens)
        yield Claim(
            f"tokens a verify, block {gamma + 1} ({NO_SOURCE})",
            f"{tokens:.2f}",
            f"predicted {predicted:.2f}",
            difference,
        )
    best = max(published, key=lambda gamma: with_tokens(found, gamma, published[gamma]))
    speed = with_tokens(found, best, published[best])
    quantized = with_tokens(predict("12B", "m5-max", Q4, gamma=tuple(published), drafter=Q4), best, published[best])
    yield Claim(
        "the best speed-up, with the published tokens a verify",
        "2.27 x",
        f"predicted {speed:.2f} x, block {best + 1}",
        against(speed, 2.27),
    )
    yield prose(
        f"""
        A block of n is n - 1 drafts. From the first draft's acceptance alone, longer blocks come out too good: later
        drafts are worse than the first, because each continues from the one before it (3.13 and 3.05 for blocks 5 and
        6 also show the noise of few prompts). The speed-up is below the published one because the drafter counts in
        bfloat16 here, so that a step reads an eighth of what a pass of 4 bits reads; the report does not say how its
        drafter was stored, and with 4 bits the model gives {quantized:.2f} x.
        """
    )


def small() -> Iterator[Claim | str]:
    yield "## E2B on an M4 Max: 1.29 x"
    source = "[elizaOS #9256](https://github.com/elizaOS/eliza/pull/9256)"
    for gamma in (1, 2, 4):
        found = predict("E2B", "m4-max", Q8, gamma=(gamma,), drafter=Q8)
        yield Claim(f"llama.cpp, gamma {gamma} (not stated), {source}", "1.29 x", needs(found, gamma, 1.29), "")
    found = predict("E2B", "m4-max", Q8, gamma=(4,), drafter=Q8)
    step, draft = found["stages"][0], found["stages"][1]
    yield prose(
        f"""
        By bytes alone a draft step costs {draft["seconds"] / 4 / step["seconds"]:.1%} of a pass, and nearly any
        acceptance gains. What small models lose is outside the model: at {step["seconds"] * 1e3:.1f} ms a pass,
        hundreds of launches count as much as the bytes, for draft steps most of all, and at the time of the report
        llama.cpp scored all 262,144 tokens in place of the clustered head's 4,096. `gemma4-mtp plan E2B --device
        m4-max` counts launches.
        """
    )


def two_cards() -> Iterator[Claim | str]:
    yield "## 31B in 8 bits on an RTX 5090 and an RTX 4090: 33.9 to 94.7 tokens/s"
    large, little = DEVICES["rtx-5090"], DEVICES["rtx-4090"]
    share = large.memory / (large.memory + little.memory)
    together = 1 / (share / large.bandwidth + (1 - share) / little.bandwidth)
    device = large._replace(bandwidth=together, flops=little.flops, memory=large.memory + little.memory)
    found = predict("31B", device, Q8, gamma=(4, 6), drafter=Q8)
    baseline = found["autoregressive_tokens_per_second"]
    yield Claim(f"autoregressive ({NO_SOURCE})", "33.9 tokens/s", f"at most {baseline:.1f}", against(baseline, 33.9))
    for gamma in (4, 6):
        yield Claim(
            f"the speed-up, gamma {gamma} (not stated)", f"{94.7 / 33.9:.2f} x", needs(found, gamma, 94.7 / 33.9), ""
        )
    yield prose(
        f"""
        Layers lie on one card or the other, in proportion to memory, and run one after the other, so bandwidths
        combine as a harmonic mean ({together / 1e9:,.0f} GB/s). The baseline reaches {33.9 / baseline:.0%} of that
        bound, a usual share.
        """
    )


PARTS = (dense, b300, mixture, apple_12b, small, two_cards)


def page() -> Iterator[str]:
    yield HEAD
    for part in PARTS:
        title, *entries = part()
        claims = [entry for entry in entries if isinstance(entry, Claim)]
        yield f"{title}\n"
        yield "| setup | published | the model | difference |\n|---|---|---|---|"
        yield from (f"| {' | '.join(claim)} |" for claim in claims)
        yield f"\n{' '.join(entry for entry in entries if isinstance(entry, str))}\n"
