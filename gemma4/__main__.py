"""The entry point of the command `gemma4-mtp`, which is `decoding.cli`.

It is in `gemma4`, the one of the three names that no other distribution uses: so it runs, and can explain, even where another
package hides our `decoding`.  It is the only file that imports upwards, and does so only after it has ruled that out.
"""

import gc
import os
import signal
import sys

from gemma4.shadowing import check_not_shadowed


def main() -> int:
    """Check that `drafter` and `decoding` are ours, then run `decoding.cli.main`.  The exit code is returned."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        # Not by an exception, which could be raised inside one of JAX's callbacks and be lost there.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        check_not_shadowed("drafter", "decoding")
        from decoding.cli.main import main
    except ImportError as error:
        if error.name not in ("drafter", "decoding"):
            raise
        print("gemma4-mtp: error:", error, file=sys.stderr)
        return 2
    gc.freeze()  # modules are not garbage: collections during tracing, and the one at exit, need not look at them
    return main()


if __name__ == "__main__":
    sys.exit(main())
