"""The entry of the command `gemma4-mtp`: outside the packages, so that it runs even where another `decoding` wins."""

import os
import signal
import sys


def main() -> int:
    """Look whether all three packages are ours, then `decoding.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        # Not as an exception: that may come up inside a callback of JAX's, and be lost there.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        import gemma4  # noqa: F401  (looks at the other two)
    except ImportError as error:
        if error.name not in ("drafter", "decoding"):
            raise
        print("gemma4-mtp: error:", error, file=sys.stderr)
        return 2
    from decoding.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
