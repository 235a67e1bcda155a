"""`python -m quad` is the `quad` command."""

from quad.cli.main import main

main()
