"""What a trial, a search and a parent leave in MLflow, and how it is read back.

    logged_run      a run, and what is written onto it
    trials          one run a trial: found by its plan, or started
    tracked_trial   its steps, each of which may be repeated, or is kept for later
    trial_inputs    its tags, parameters, recipe and lock
    trial_result    what it came to
    trial_page      its registration, description, leaderboard, plot, lineage and card
    ownership       one run and one model a plan, whichever process is at work on it
    finished        what a finished trial stood on, so that the same command again is quick
    kept_answers    what a command that only reads answered, while nothing was written
    pending, sync   a trial on disk while the server is away, and how it is logged later
    parents         base and sources as models and runs of the same experiment
    score_log       scores onto runs and models, and back
    score_records   scores that other machines made
    versions        versions of the registered model
    searches        a search with its trials nested; search_page is what its page shows
    compare         the leaderboard of experiments

Nothing here reads weights or scores models.

Stands on: checkpoint, errors, evaluate, kernels, methods, progress, recipe, redact, report, schema,
scores, sources, store, version.
"""

from mergeops.tracking.compare import compare_experiments
from mergeops.tracking.finished import NOTES, Beginning, FinishedTrial, note_finished, recall
from mergeops.tracking.kept_answers import kept_answer
from mergeops.tracking.logged_run import LoggedRun
from mergeops.tracking.parents import log_parent
from mergeops.tracking.pending import FOLDER, pending_trials
from mergeops.tracking.score_log import read_scores
from mergeops.tracking.score_records import ScoreRecords
from mergeops.tracking.search_page import TrialLine, log_search
from mergeops.tracking.searches import SearchRun, search_run
from mergeops.tracking.sync import raise_if_failed, sync_trials
from mergeops.tracking.trial_page import log_leaderboard, log_unregistered, register_trial
from mergeops.tracking.trial_result import Trial
from mergeops.tracking.trials import open_trial, read_recipe, reopen
from mergeops.tracking.versions import find_registered_model, find_version, pooled_estimate

__all__ = [
    "FOLDER",
    "NOTES",
    "Beginning",
    "FinishedTrial",
    "LoggedRun",
    "ScoreRecords",
    "SearchRun",
    "Trial",
    "TrialLine",
    "compare_experiments",
    "find_registered_model",
    "find_version",
    "kept_answer",
    "log_leaderboard",
    "log_parent",
    "log_search",
    "log_unregistered",
    "note_finished",
    "open_trial",
    "pending_trials",
    "pooled_estimate",
    "raise_if_failed",
    "read_recipe",
    "read_scores",
    "recall",
    "register_trial",
    "reopen",
    "search_run",
    "sync_trials",
]
