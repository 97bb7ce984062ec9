"""``python -m trioft``."""

from trioft.cli.app import main

main()
