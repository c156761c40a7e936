"""`python -m zeroshot`."""

from zeroshot.cli import main

main()
