"""`python -m zeroshot`, and the command `zeroshot`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it in order from the first moment."""
    try:
        from zeroshot.commands.terminal import process

        process.begin()
        from zeroshot import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
