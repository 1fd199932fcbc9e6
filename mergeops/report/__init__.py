"""Reports: leaderboard, plots, lineage picture and model card."""
