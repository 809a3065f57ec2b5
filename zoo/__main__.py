"""``python -m zoo`` is ``revgnn-zoo``."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported is answered in one line too."""
    try:
        from zoo.cli import main

        return main()
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
