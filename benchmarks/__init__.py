"""``make bench``: mergekit, mergeops and the cost of the bytes alone, side by side."""
