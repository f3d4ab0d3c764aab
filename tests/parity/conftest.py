"""Loads transformers before any module of ours does: jaxtyping's import hook reads and writes other byte code than Python
does, also of what a module imports, so torch would be compiled anew (where byte code is not written, at every start).
"""

import contextlib

with contextlib.suppress(ImportError):  # without torch, these tests are skipped
    from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM  # noqa: F401
