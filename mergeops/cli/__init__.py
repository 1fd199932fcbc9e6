"""The command line: one module a command; it parses, calls and prints.

Stands on: activations, adoption, checkpoint, cleanup, client, derived, engine, errors, executors,
extraction, inspection, lineage, methods, pipeline, progress, promotion, recipe, recover, redact,
report, scores, search, service, sources, store, tools, tracking, transplant, version, watching,
workshop.
"""
