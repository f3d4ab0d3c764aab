"""Live comparisons with transformers.  Where the extra `parity` is not installed, every file here reports itself skipped.

Its classes are imported here, before any module of ours: jaxtyping's import hook keeps byte code of its own, also for what a
module imports in its turn, so that torch would be compiled again there.
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM  # noqa: E402, F401
