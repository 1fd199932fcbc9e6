"""``python -m mergeops`` is the ``mergeops`` command."""

from mergeops.cli import main

main()
