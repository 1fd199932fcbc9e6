"""What a team has before mergeops: a base model, fine-tuning runs in MLflow, and tasks to score."""
