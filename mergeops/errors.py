"""Every error that mergeops raises on purpose, and the exit code it ends the command with.

    MergeopsError            1   anything below
    ├── ConfigError          2   the recipe, an override or a flag is wrong
    ├── SourceError          3   an input checkpoint cannot be found, read or trusted
    ├── MergeError           4   the inputs cannot be merged, or the output cannot be written
    ├── EvaluationError      5   a task is unknown or broken, or a model cannot be scored
    ├── TrackingError        6   the MLflow server cannot be reached or refuses
    │   └── AwayError        6   it is away for now; what was to be logged can be logged later
    └── GateRefusedError     7   the evidence does not support the promotion

A message is one line: what is wrong, where, the value, and what is allowed or what to do next.
Errors of lower layers are caught where they arise and raised again as one of these, with the
original as ``__cause__``; ``mergeops --debug`` shows it.
"""


class MergeopsError(Exception):
    """Base of all errors that are the user's to fix; never raised itself."""

    exit_code = 1


class ConfigError(MergeopsError):
    """The recipe, an override or a flag is wrong."""

    exit_code = 2


class SourceError(MergeopsError):
    """An input checkpoint cannot be found, read or trusted."""

    exit_code = 3


class MergeError(MergeopsError):
    """The inputs cannot be merged, or the output cannot be written."""

    exit_code = 4


class EvaluationError(MergeopsError):
    """A task is unknown or broken, or a model cannot be scored."""

    exit_code = 5


class TrackingError(MergeopsError):
    """The MLflow server cannot be reached, or refuses what it was asked."""

    exit_code = 6


class AwayError(TrackingError):
    """The server or its artifact store cannot be reached, fails inside or denies access: asking on
    is in vain now, and the same request may pass later."""


class GateRefusedError(MergeopsError):
    """The evidence does not support the promotion."""

    exit_code = 7
