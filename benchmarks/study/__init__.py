"""What every merge method did on real fine-tunes of a real model: docs/study.md.

python -m benchmarks.study run DIR --data FOLDER --data FOLDER    # kill it anywhere; it goes on
python -m benchmarks.study report DIR                             # figures from what is there
"""
