"""Everything that is logged to MLflow.

    connection    the server and the experiment: ``connect`` is the way in
    trial         one run a trial: found by its plan, or started
    trial_run     its steps, each of which may be repeated, or kept for later
    ownership     one run and one model a plan, whoever else is at work on it
    pending       a trial on disk, while the server is away
    trial_inputs  its tags, parameters, recipe and lock
    trial_page    its description, leaderboard, plot, lineage and card
    parents       base and sources as models and runs of the same experiment
    scores        scores onto runs and models, and back
    packaging     the merge as an MLflow model without a second copy of its weights
    transfer      files to the artifact store, and back to be hashed
    registry      versions of the registered model
    search_run    a search with its trials nested
    ancestors     a model's family tree, read back through family_records
    references    who needs a merge: versions, aliases, running trials
    client, keys  errors in one line; what MLflow refuses or cuts
    links         where to look in the MLflow UI
    lock          one process at a time

Nothing here reads weights or scores models; nothing else writes to MLflow, but ``sources.adopt``.
"""
