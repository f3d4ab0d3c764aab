"""`gemma4-mtp inspect`: the numbers of the released sizes, and what a user can get wrong."""

import json

import pytest

from decoding.cli.main import main
from decoding.planning.architecture import MODEL_CARDS, describe, models_of
from gemma4 import PRESETS
from gemma4.config import FULL, SLIDING
from tests.gemma4.checkpoints.test_full_size import PUBLISHED
from tests.models import write_pair


@pytest.mark.parametrize("name", PRESETS)
def test_totals_are_the_published_ones(name):
    found = describe(models_of(name))
    params = found["parameters"]
    assert params["effective"] == PUBLISHED[name][0]
    assert sum(params["parts"].values()) == params["total"] + len(found["layers"])
    assert found["model_card"] == MODEL_CARDS[name]
    assert (params["active"] == 3_822_530_560) == (name == "26B-A4B"), "3.8 B of 25.2 B"


def test_layers_of_e2b():
    """Donors 13 and 14, which 20 layers of twice the width read: figures of the released configuration."""
    layers = describe(models_of("e2b"))["layers"]
    assert [layer["layer"] for layer in layers if layer["is_donor"]] == [13, 14]
    assert {layer["kv_of"] for layer in layers[15:]} == {13, 14} and not any(layer["owns_kv"] for layer in layers[15:])
    assert [layer["mlp_width"] for layer in layers] == 15 * [6144] + 20 * [12288]
    assert {(layer["type"], layer["head_dim"], layer["kv_heads"]) for layer in layers} == {
        ("sliding", 256, 1),
        ("full", 512, 1),
    }


def test_bytes_by_hand():
    """31B: 50 sliding layers of 16 K/V heads of 256, 10 full ones of 4 heads of 512; keys and values in 2 bytes."""
    found = describe(models_of("31B"))
    assert found["kv_bytes_per_token"] == {SLIDING: 50 * 2 * 16 * 256 * 2, FULL: 10 * 2 * 4 * 512 * 2}
    assert found["step_bytes"] > 2 * found["parameters"]["total"], "all weights, and K/V"
    halves = describe(models_of("31B", dtype="float32"))
    assert halves["kv_bytes_per_token"][FULL] == 2 * found["kv_bytes_per_token"][FULL]


def shown(capsys, *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_tables(capsys):
    text = shown(capsys, "E2B")
    assert (
        "13     sliding      8          1   256   6,144  its own     donor: read by 16 layers from 15 on and the drafter"
        in text
    )
    assert "clustered, 4,096 tokens scored" in text and "2,279,759,104" in text
    mixture = shown(capsys, "26B-A4B")
    assert "128 experts" in mixture and "V = K" in mixture and "3,822,530,560" in mixture


def test_the_shipped_pair(capsys):
    """Also where a drafter's layer has the number of its donor: it owns no K/V."""
    text = shown(capsys)
    assert "12,168,416" in text
    drafter = text.partition("its drafter:")[2]
    assert "its own" not in drafter and "donor" not in drafter


def test_a_directory_without_weights(tmp_path, capsys):
    write_pair(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    text = shown(capsys, str(tmp_path / "target"), "--drafter", str(tmp_path / "drafter"), "--json")
    found = json.loads(text)
    assert len(found["layers"]) == 3 and found["drafter"]["head"]["kind"] == "clustered" and found["model_card"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["7B"], "7B: expected E2B, E4B, 12B, 26B-A4B, 31B, 50M or a directory with config.json, got neither"),
        (["."], "config.json: missing"),
        (["E2B", "--drafter", "no such place"], "no such directory"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out
