"""The entry of the command `gemma4-mtp`, which is `decoding`'s.

It stands in `gemma4`, a name that is nobody else's, so that it runs and explains even where another `decoding` wins; and it
imports upwards, as nothing else here does, only once that has been ruled out.
"""

import sys

from gemma4.shadowing import check_not_shadowed


def main() -> int:
    try:
        check_not_shadowed("drafter", "decoding")
        from decoding.cli import main
    except KeyboardInterrupt:  # while packages are being imported
        return 130
    except ImportError as error:
        if error.name not in ("drafter", "decoding"):
            raise
        print("gemma4-mtp: error:", error, file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(main())
