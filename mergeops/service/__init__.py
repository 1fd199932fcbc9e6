"""The merge service: commands as jobs, on a queue, behind an API and a page.

    queued_jobs            what a job is
    job_commands, allowed  and what it may be
    queue_tables, queue    jobs in PostgreSQL, which is waited for in reaching
    takeover, worker       who works on what; child is the command's process
    watches                watches, and when each looks again
    mlflow_view, boards    proposals and leaderboards, from MLflow
    web/                   guard, API and page
    embedded, place        the database and the secrets of one project
    serving                all of it, as one process

Stands on: checkpoint, client, errors, progress, promotion, recipe, redact, report, schema, search,
store, tracking, version, watching.
"""

from mergeops.service.job_worker import WorkerSettings, work
from mergeops.service.operator_config import ServiceConfig, read_config
from mergeops.service.place import ServicePlace
from mergeops.service.queue import Queue, open_queue
from mergeops.service.serving import ServeSettings, serve
from mergeops.service.watches import Watch, Watches

__all__ = [
    "Queue",
    "ServeSettings",
    "ServiceConfig",
    "ServicePlace",
    "Watch",
    "Watches",
    "WorkerSettings",
    "open_queue",
    "read_config",
    "serve",
    "work",
]
