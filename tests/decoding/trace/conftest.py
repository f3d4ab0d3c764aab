"""Traces of tiny models, recorded once, and a real browser to open pages in."""

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoding.load import load_pair
from decoding.options import Options
from decoding.sampling import Sampling
from decoding.trace import record as recording
from decoding.trace.page import build_page
from decoding.trace.screenshot import find_browser
from tests.models import small_drafter, small_target

EXAMPLE = Path(__file__).parents[3] / "tutorials" / "reference" / "trace_example.json"
GAMMA, LENGTH = 3, 34
PROMPT = [3, 9, 4, 1, 12, 7, 7, 2, 14, 3, 8, 11]  # with the text longer than a ring of this pair, which has 39 slots
NO_TIMES = {"made_by": {"engine": "a test"}, "times": None}

# What is recorded: options, and the seed.  With eos_ids, the text ends inside a round, with an accepted draft.
# At this temperature the tiny pair, which is not trained, accepts some drafts.
WARM = Sampling(4.0)
KINDS = {
    "token": (Options(GAMMA, WARM), 1),
    "block": (Options(GAMMA, WARM, acceptance="block"), 1),
    "cut": (Options(GAMMA, Sampling(4.0, top_k=8, top_p=0.95)), 2),
    "greedy": (Options(GAMMA, Sampling()), 0),
    "greedy drafts": (Options(GAMMA, WARM, Sampling()), 3),
    "eos": (Options(GAMMA, WARM, eos_ids=(13,)), 1),
}


@functools.cache
def recorded(kind: str) -> tuple[dict[str, Any], list[Any]]:
    """A trace, and for each round (p, drafts, q, uniforms), the arrays that acceptance had."""
    options, seed = KINDS[kind]
    arrays = []
    original = recording.describe

    def describe(target, draft_model, state, stages, options):
        drafted = stages.drafted
        arrays.append(
            tuple(map(np.asarray, (stages.target_probs, drafted.tokens[0], drafted.probs[0], stages.uniforms)))
        )
        return original(target, draft_model, state, stages, options)

    recording.describe = describe
    try:
        trace = recording.record(
            small_target(), small_drafter(), None, PROMPT, options, max_new_tokens=LENGTH, seed=seed
        )
    finally:
        recording.describe = original
    return trace | NO_TIMES, arrays


@functools.cache
def recorded_pair(directory: Path) -> dict[str, Any]:
    """A trace of the tiny pair on disk, which has a tokenizer and a clustered head."""
    target, draft_model, tokenizer = load_pair(directory / "target", directory / "drafter")
    assert tokenizer is not None
    ids = [2, *tokenizer.encode("In the beginning 東", add_special_tokens=False).ids]
    options = Options(GAMMA, Sampling(0.7))
    trace = recording.record(target, draft_model, tokenizer, ids, options, max_new_tokens=12, seed=5)
    return trace | NO_TIMES


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def trace() -> dict[str, Any]:
    """The documentation's example, to be changed at will: 64 tokens of the shipped pair."""
    return copy.deepcopy(example())


@functools.cache
def example() -> dict[str, Any]:
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


# -- a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The distribution's Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: install the extra `browser`")
    if (found := find_browser()) is None:
        pytest.skip("no browser: install the distribution's chromium")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, tmp_path) -> Iterator[Callable[..., Any]]:
    """Opens a trace's page without a network; in the end nothing but the file was asked for, and no error was reported."""
    contexts, requests, errors = [], [], []

    def open_page(trace: dict[str, Any], place: str = "", width: int = 1280, **settings: Any) -> Any:
        file = tmp_path / f"trace{len(contexts)}.html"
        file.write_text(build_page(trace), encoding="utf-8")
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{file.as_uri()}{place}")
        return page

    yield open_page
    assert errors == []
    assert len(requests) == len(contexts) and all(url.startswith("file://") for url in requests)
    for context in contexts:
        context.close()
