"""``python -m trioft``."""

from trioft.cli import main

main()
