"""The Gemma 4 text decoder in JAX.  The README has the reading order; begin with functional.py."""

from gemma4.shadowing import begin_command

begin_command()  # before the import of JAX, which takes most of the command's first second

from gemma4.cache import KVCache, LayerKV, init_cache, truncate
from gemma4.checkpoints.directories import CheckpointError
from gemma4.checkpoints.target import export_hf, load, save
from gemma4.config import PRESETS, Config
from gemma4.model import Gemma4, Output, forward

__version__ = "0.2.0"  # `pyproject.toml` reads it here

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Config",
    "Gemma4",
    "KVCache",
    "LayerKV",
    "Output",
    "export_hf",
    "forward",
    "init_cache",
    "load",
    "save",
    "truncate",
]
