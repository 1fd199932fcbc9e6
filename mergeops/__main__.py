"""``python -m mergeops`` is the ``mergeops`` command."""

from mergeops.cli.main import main

main()
