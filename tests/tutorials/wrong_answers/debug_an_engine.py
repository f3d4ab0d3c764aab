"""Wrong answers to the exercises of `10_debug_an_engine`."""

import contextlib
import io
import runpy
from pathlib import Path

from sick_engine import SickEngine

ANSWERS = Path(__file__).parents[3] / "tutorials" / "answers" / "10_debug_an_engine.py"
with contextlib.redirect_stdout(io.StringIO()):  # a test reads what the checks of wrong answers print
    RIGHT = runpy.run_path(str(ANSWERS))


class Healthy(RIGHT["Fifth"]):
    """Without the fifth mistake."""

    def logits(self, hidden):
        return super().logits(hidden) / 0.9


WRONG = {
    1: [
        ({**RIGHT["first_tensor"], "rope-turns-every-pair": "layers.0.query"},),
        ({**RIGHT["first_tensor"], "layer-scalar-dropped": "hidden"},),
        ({**RIGHT["first_tensor"], "attention-not-normed-behind": "layers.0.self_attn"},),
        ({"rope-turns-every-pair": "layers.2.query"},),
        ({**RIGHT["first_tensor"], "layer-scalar-dropped": "the output"},),
    ],
    2: [(SickEngine,), (Healthy,)],
    3: [("abc",), ("cef",), ("ac",), ("xyz",)],
}
