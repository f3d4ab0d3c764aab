"""Names on the Hugging Face hub: a cache that is built here, and no network."""

import builtins
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors

import decoding
from decoding.cli.main import main
from gemma4 import CheckpointError
from gemma4.checkpoints import hub
from gemma4.checkpoints.hub import local_directory

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty cache; the hub cannot be reached."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, value in {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.chdir(tmp_path)
    hub._snapshot.cache_clear()
    yield cache
    hub._snapshot.cache_clear()


def put(cache: Path, name: str, directory: Path) -> None:
    """Files as the hub's client keeps them: links into blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for number, file in enumerate(sorted(directory.iterdir())):
        shutil.copyfile(file, repository / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))


@pytest.fixture(scope="module")
def pair_dir(tmp_path_factory) -> Path:
    from tests.models import write_pair

    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory)
    return directory


def test_a_pair_from_the_cache(offline, pair_dir):
    put(offline, "tests/target-it", pair_dir / "target")
    put(offline, "tests/drafter", pair_dir / "drafter")
    pair = decoding.load_pair("tests/target-it", "tests/drafter")
    expected = decoding.load_pair(pair_dir / "target", pair_dir / "drafter")
    np.testing.assert_array_equal(pair.target.embed_tokens.weight, expected.target.embed_tokens.weight)
    assert (
        pair.tokenizer.to_str() == expected.tokenizer.to_str()
        and pair.draft_model.config == expected.draft_model.config
    )


def test_the_command_takes_such_names(offline, pair_dir, capsys, monkeypatch):
    monkeypatch.setattr("decoding.cli.main.keep_compiled_code", lambda: None)
    put(offline, "tests/target-it", pair_dir / "target")
    put(offline, "tests/drafter", pair_dir / "drafter")
    arguments = ["--max-new-tokens=1", "--quiet", "--baseline"]
    assert main(["generate", "In", "--target=tests/target-it", *arguments]) == 0
    out = capsys.readouterr().out
    assert main(["generate", "In", f"--target={pair_dir / 'target'}", *arguments]) == 0
    assert capsys.readouterr().out == out


def test_a_local_directory_comes_first(offline, pair_dir):
    put(offline, "tests/target", pair_dir / "target")
    assert local_directory("tests/target") == offline / "models--tests--target" / "snapshots" / REVISION
    for local in ("tests/target", "tests"):  # its parent is enough: then a typing error is not looked for on the hub
        Path(local).mkdir(parents=True)
        assert local_directory("tests/target") == Path("tests/target")
        shutil.rmtree("tests")


@pytest.mark.parametrize("name", ["./google/gemma", "/google/gemma", "gemma", "a/b/c", "../a", "~/gemma", "a/.b"])
def test_what_is_no_name_on_the_hub(name, offline):
    assert local_directory(name) == Path(name)
    assert local_directory(Path("google/gemma")) == Path("google/gemma")


def one_line(capsys, *arguments: str) -> str:
    assert main(["generate", "x", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("gemma4-mtp: error: "), err
    return err


def test_nothing_is_cached(offline, capsys):
    """The pair that a user names, and a bare target."""
    for rest in (["--drafter=google/none-drafter"], ["--baseline"]):
        err = one_line(capsys, "--target=google/none", *rest)
        assert "google/none: no such directory here; as a name on the hub it is not in the cache" in err
        assert str(offline) in err and "HF_HUB_OFFLINE=1" in err


def test_without_the_package(offline, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'gemma4-mtp[hub]'" in one_line(capsys, "--target=google/none", "--baseline")


def response_error(kind):
    return kind.__new__(kind)  # without the response that its constructor takes


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RepositoryNotFoundError", "no such directory here, and no such model on the hub"),
        ("GatedRepoError", "accept it on https://huggingface.co/google/none"),
        ("HfHubHTTPError", "and the hub cannot be reached ("),
    ],
)
def test_what_the_hub_refuses(kind, message, offline, monkeypatch):
    def refuse(*args, **kwargs):
        raise response_error(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(")):
        local_directory("google/none")


def test_it_is_imported_only_for_such_a_name(pair_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    decoding.load_pair(pair_dir / "target", pair_dir / "drafter")
