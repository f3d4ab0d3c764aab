"""The MTP drafter of Gemma 4 in JAX.  The README has the reading order; begin with model.py."""

from drafter.checkpoint import export_hf, load, save
from drafter.clustering import Clusters, cluster_recall, cluster_vocabulary, clustered_argmax, clustered_logits
from drafter.config import PRESETS, Config
from drafter.model import Drafter, forward
from drafter.shared_cache import SharedCache, share_cache

__all__ = [
    "PRESETS",
    "Clusters",
    "Config",
    "Drafter",
    "SharedCache",
    "cluster_recall",
    "cluster_vocabulary",
    "clustered_argmax",
    "clustered_logits",
    "export_hf",
    "forward",
    "load",
    "save",
    "share_cache",
]

__distribution__ = "gemma4-mtp"  # tells this package from others of the name: gemma4/shadowing.py
