"""`generation_config.json`: recommended sampling settings, and what is not applied."""

import json

import pytest

import decoding
from decoding import Sampling
from decoding.generation_config import NOT_APPLIED
from gemma4 import CheckpointError


def read(tmp_path, content: object) -> Sampling:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    return decoding.load_sampling(tmp_path)


def test_without_a_file_greedy(tmp_path):
    assert decoding.load_sampling(tmp_path) == Sampling()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}, Sampling(1.0, 64, 0.95)),  # as released
        ({"do_sample": True, "suppress_tokens": [5, 3]}, Sampling(1.0, 50, suppress_tokens=(5, 3))),
        ({"do_sample": True, "top_k": 0, "temperature": 0.5, "suppress_tokens": None}, Sampling(0.5)),
        ({"do_sample": False, "temperature": 1.0, "suppress_tokens": [5]}, Sampling(suppress_tokens=(5,))),
        ({"temperature": 1.0, "top_k": 64}, Sampling()),
    ],
)
def test_fields_of_a_file(tmp_path, caplog, content, expected):
    assert read(tmp_path, {"eos_token_id": [1, 106], **content}) == expected
    assert not caplog.records


def test_what_is_not_applied_is_named_once(tmp_path, caplog):
    neutral = {name: values[-1] for name, values in NOT_APPLIED.items()}
    read(tmp_path, neutral)
    assert not caplog.records
    read(tmp_path, {**neutral, "repetition_penalty": 1.1, "forced_bos_token_id": 2})
    (record,) = caplog.records
    assert "generation_config.json: forced_bos_token_id, repetition_penalty are not applied" in record.getMessage()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_sample": True, "temperature": -1.0}, "temperature: expected a number from 0"),
        ({"do_sample": True, "top_k": -1}, "top_k: expected a number of tokens"),
        ({"suppress_tokens": [-1]}, "suppress_tokens: expected token ids from 0"),
        ([], "expected a JSON object"),
    ],
)
def test_a_bad_value_is_named(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=f"generation_config.json: {message}"):
        read(tmp_path, content)
