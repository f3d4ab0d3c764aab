"""Options and Sampling validate themselves: each error names the setting, what was expected and what came."""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from decoding import Options, Sampling
from decoding.options import ACCEPTANCE_METHODS, MAX_DRAFT_LENGTH, whole_number
from decoding.sampling import MIN_TEMPERATURE, MIN_TOP_P, REFERENCE

NUMBERS = "sampling: expected numbers, for top_k a whole number, got "
TEMPERATURE = r"temperature: expected a number from 0 \(greedy\) up, got "
TOP_P = "top_p: expected a probability from 1e-30 to 1, got "
TOP_K = "top_k: expected a number of tokens, or 0 for all, got "


def built(kind: type, **settings: Any) -> Any:
    """kind(**settings) without the annotations, which are checked in tests alone."""
    made = object.__new__(kind)
    inspect.unwrap(kind.__init__)(made, **settings)
    return made


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1.0}, TEMPERATURE + "-1$"),
        ({"temperature": float("inf")}, TEMPERATURE + "inf$"),
        ({"temperature": float("nan")}, TEMPERATURE + "nan$"),
        ({"temperature": "warm"}, NUMBERS + "temperature='warm', top_k=0, top_p=1.0"),
        ({"temperature": None}, NUMBERS + "temperature=None"),
        ({"top_k": -1}, TOP_K + "-1$"),
        ({"top_k": 1.5}, NUMBERS + "temperature=0.0, top_k=1.5"),
        ({"top_k": 2.0}, NUMBERS + "temperature=0.0, top_k=2.0"),
        ({"top_k": jnp.inf}, NUMBERS + "temperature=0.0, top_k=inf"),
        ({"top_p": 0.0}, TOP_P + "0$"),
        ({"top_p": 1.5}, TOP_P + "1.5$"),
        ({"top_p": -0.5}, TOP_P + "-0.5$"),
        ({"top_p": float("nan")}, TOP_P + "nan$"),
        ({"top_p": (0.9,)}, NUMBERS + "temperature=0.0, top_k=0, top_p=.0.9,.$"),
    ],
    ids=str,
)
def test_sampling_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        built(Sampling, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"draft_length": -1}, "draft_length: expected 0 to 32 tokens a round, got -1"),
        ({"draft_length": MAX_DRAFT_LENGTH + 1}, "draft_length: expected 0 to 32 tokens a round, got 33"),
        ({"draft_length": 2.0}, "draft_length: expected a whole number, got 2.0"),
        ({"draft_length": "4"}, "draft_length: expected a whole number, got '4'"),
        ({"sampling": 0.8}, r"^sampling: expected decoding.Sampling\(temperature, top_k, top_p\), got 0.8"),
        ({"sampling": None}, "^sampling: expected decoding.Sampling.* got None"),
        ({"draft_sampling": "greedy"}, "^draft_sampling: expected decoding.Sampling.* got 'greedy'"),
        ({"eos_ids": 5}, r"eos_ids: expected token ids, such as \(1, 106\), got 5"),
        ({"eos_ids": "1"}, "eos_ids: expected token ids, such as .* got '1'"),
        ({"eos_ids": [5.5]}, r"eos_ids: expected token ids, such as .* got \[5.5\]"),
        ({"eos_ids": [2**31]}, r"eos_ids: expected token ids from 0 to 2147483646, got \(2147483648,\)"),
        ({"eos_ids": [-1]}, r"eos_ids: expected token ids from 0 to 2147483646, got \(-1,\)"),
        (
            {"acceptance": "blocks"},
            r"acceptance: expected 'token', 'block' or a function like .*, got 'blocks'",
        ),
        (
            {"acceptance": ["block"]},
            r"acceptance: expected 'token', 'block' or a function like .*, got \['block'\]",
        ),
    ],
    ids=str,
)
def test_options_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        built(Options, **settings)


def test_a_changed_copy_is_validated_too():
    with pytest.raises(ValueError, match=TOP_K + "-1$"):
        dataclasses.replace(Sampling(), top_k=-1)
    with pytest.raises(ValueError, match="draft_length: expected 0 to 32 tokens a round, got 33"):
        dataclasses.replace(Options(), draft_length=33)


def test_a_long_value_is_not_printed_whole():
    with pytest.raises(ValueError, match="acceptance: ") as error:
        Options(acceptance="block" * 1000)
    assert len(str(error.value)) < 200


def test_the_first_and_the_last_values_that_are_allowed():
    for draft_length in (0, MAX_DRAFT_LENGTH):
        assert Options(draft_length).draft_length == draft_length
    assert Options(eos_ids=[0, 2**31 - 2]).eos_ids == (0, 2**31 - 2)
    assert {Options(acceptance=method).acceptance for method in ACCEPTANCE_METHODS} == {"token", "block"}
    assert Sampling(0.0, 0, MIN_TOP_P).top_p == MIN_TOP_P and Sampling(top_p=1.0).top_p == 1


def test_draft_sampling_is_like_sampling_unless_given():
    warm, greedy = Sampling(0.8, top_k=9), Sampling()
    assert Options(sampling=warm).draft_sampling == warm
    assert Options(sampling=warm, draft_sampling=greedy).draft_sampling == greedy
    assert Options(sampling=greedy, draft_sampling=warm).draft_sampling == warm


def test_settings_become_numbers_of_python():
    """Options that mean the same are equal and have one hash, so that what is compiled for one serves the other."""
    sampling = built(Sampling, temperature=jnp.float32(0.5), top_k=np.int64(3), top_p=np.float32(1))
    options = built(Options, draft_length=jnp.int32(3), sampling=sampling, eos_ids=jnp.array([5]))
    same = Options(3, Sampling(0.5, 3, 1.0), eos_ids=(5,))
    assert options == same and hash(options) == hash(same)
    assert options.kernels is REFERENCE
    assert type(options.draft_length) is type(sampling.top_k) is type(options.eos_ids[0]) is int
    assert type(sampling.temperature) is type(sampling.top_p) is float


def test_temperatures_below_the_least_are_greedy():
    below = np.nextafter(MIN_TEMPERATURE, 0)
    assert Sampling().is_greedy and Sampling(below).is_greedy and not Sampling(MIN_TEMPERATURE).is_greedy


@pytest.mark.parametrize(
    "value, least, message",
    [
        ("4", 1, "threads: expected a whole number, got '4'"),
        (None, 1, "threads: expected a whole number, got None"),
        (2.0, 1, "threads: expected a whole number, got 2.0"),
        (0, 1, "threads: expected at least 1, got 0"),
        (-1, 0, "threads: expected at least 0, got -1"),
    ],
)
def test_no_whole_number(value, least, message):
    with pytest.raises(ValueError, match=message):
        whole_number("threads", value, least)


def test_whole_numbers():
    assert whole_number("threads", np.int64(2), least=2) == 2 and type(whole_number("threads", np.int64(2))) is int
    assert whole_number("threads", -7) == -7
