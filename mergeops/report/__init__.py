"""Reports: leaderboard, plots, lineage picture, model card, and what the terminal shows."""
