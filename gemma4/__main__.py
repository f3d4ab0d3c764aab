"""The entry point of the command `gemma4-mtp`, which is `decoding.cli`.

It is in `gemma4`, the one of the three names that no other distribution uses: so it runs, and can explain, even where another
package hides our `decoding`.  It is the only file that imports upwards, and does so only after it has ruled that out.
"""

import gc
import sys

from gemma4.shadowing import check_not_shadowed, end_quietly_when_interrupted, mistake


def main() -> int:
    """Check that `drafter` and `decoding` are ours, then run `decoding.cli.main`.  The exit code is returned."""
    end_quietly_when_interrupted()
    try:
        check_not_shadowed("drafter", "decoding")
        from decoding.cli.main import main
    except ImportError as error:
        if error.name not in ("drafter", "decoding"):
            raise
        return mistake(error)
    gc.freeze()  # modules are not garbage: collections during tracing, and the one at exit, need not look at them
    return main()


if __name__ == "__main__":
    sys.exit(main())
