"""The entry of the command `gemma4-mtp`, which is `decoding`'s.

It stands in `gemma4`, a name that is nobody else's, so that it runs and explains even where another `decoding` wins; and it
imports upwards, as nothing else here does, only once that has been ruled out.
"""

import os
import signal
import sys

from gemma4.shadowing import check_not_shadowed


def main() -> int:
    """Look whether all three packages are ours, then `decoding.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        # Not as an exception: that may come up inside a callback of JAX's, and be lost there.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        check_not_shadowed("drafter", "decoding")
        from decoding.cli import main
    except ImportError as error:
        if error.name not in ("drafter", "decoding"):
            raise
        print("gemma4-mtp: error:", error, file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(main())
