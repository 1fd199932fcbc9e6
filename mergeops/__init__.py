"""mergeops: merge fine-tuning runs into a better model, scored, tracked and promoted in MLflow."""

__version__ = "0.1.0"
