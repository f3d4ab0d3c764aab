"""Answers to the exercises of `10_debug_an_engine`.

10.3: (a) What is emitted is the target's own sample, whether or not the draft equals it.  (c) The two factors cancel.
(e) Division by the sum of the kept probabilities is the softmax of the kept logits.  The others change the distribution:
(b) a token that was not drafted gets a second chance, (d) the softmax gives probability to tokens that p has less of than q,
(f) tokens other than the argmax can only come from a correction.
"""

import numpy as np
from sick_engine import SickEngine

from exercises.debug_an_engine import check_1, check_2, check_3


class Fifth(SickEngine):
    """Right but for its logits, which are a tenth too small: the order stays."""

    def mask(self, layer, time):
        query, key = np.arange(time)[:, None], np.arange(time)
        seen = key <= query
        return seen & (query - key < self.config["sliding_window"]) if self.is_sliding(layer) else seen

    def raw_value(self, layer, x, raw_key, key):
        return self.heads(layer, "v_proj", x) if self.is_sliding(layer) else raw_key

    def logits(self, hidden):
        return 0.9 * 30 * np.tanh(super().logits(hidden) / 30)

    def next_weights(self, p, q):
        return np.maximum(p - q, 0)


first_tensor = {
    "rope-turns-every-pair": "layers.2.query",
    "layer-scalar-dropped": "layers.0.output",
    "attention-not-normed-behind": "layers.0.after_attention",
}
assert check_1(first_tensor)
assert check_2(Fifth)
assert check_3("ace")
