"""A name on the Hugging Face hub, such as google/gemma-4-E2B-it, in place of a checkpoint's directory.

`huggingface_hub` (the extra `hub`) downloads the files, or finds them in its cache; it is imported only for such a name.  With
HF_HUB_OFFLINE=1, or without a network, the cache alone is asked.
"""

import functools
import logging
import os
import re
from pathlib import Path

from gemma4 import progress
from gemma4.checkpoints.directories import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ("*.json", "*.safetensors", "*.jinja")


def local_directory(name: str | os.PathLike) -> Path:
    """The directory of that name; for a hub id, that of the hub's files in the cache, downloaded if they are not there.

    What exists here is taken first, and a path into a directory that exists here is never a hub id.
    Errors: CheckpointError if the package is missing, if the hub has no such model for this user, and if it cannot be reached
            and nothing is cached.
    """
    path = Path(name)
    if not isinstance(name, str) or not HUB_ID.fullmatch(name) or os.path.lexists(path) or path.parent.exists():
        return path
    return _snapshot(name)


@functools.lru_cache
def _snapshot(name: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such directory; to take it for a name on the Hugging Face hub, install huggingface_hub: "
            "pip install 'gemma4-mtp[hub]'"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of is in the errors below
    if not progress.is_shown():
        disable_progress_bars()
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: the hub asks for an agreement first; accept it on https://huggingface.co/{name}, then log in with "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such directory here, and no such model on the hub, or only for users who log in (`hf auth login`); "
            "look for a typing error"
        ) from error
    except Exception as error:  # of the network: many kinds
        offline = isinstance(error, errors.LocalEntryNotFoundError)
        incomplete = " whole" if isinstance(error, errors.IncompleteSnapshotError) else ""
        reason = "no network, or HF_HUB_OFFLINE=1" if offline else " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{name}: no such directory here; as a name on the hub it is not{incomplete} in the cache "
            f"({constants.HF_HUB_CACHE}), and the hub cannot be reached ({reason}); load it once with a network, "
            "or give a local directory"
        ) from error
