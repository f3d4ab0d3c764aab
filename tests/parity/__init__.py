"""Live comparisons with transformers.  Where the extra `parity` is not installed, every file here reports itself skipped."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
