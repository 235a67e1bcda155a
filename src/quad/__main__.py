"""The `quad` command, and `python -m quad`: until its modules are read, Ctrl-C ends it without a word, as it does later."""

import signal

_PYTHONS = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started it has Ctrl-C ignored
if _PYTHONS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from quad.cli.main import main as command  # noqa: E402 - after that


def main() -> None:
    """Entry point of the `quad` script."""
    if _PYTHONS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
