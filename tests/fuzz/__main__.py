"""``make fuzz MINUTES=60``: mutations of every kind of file until the time is over.

Prints a row a kind, and keeps what was found, with its seed, in fuzz-findings/.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz.places import KINDS
from fuzz.trials import BAD, Fuzzer, FuzzTrial, kinds_by_weight

ENDS = ("accepted", "refused", *BAD)


def main() -> int:
    """Fuzz; 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--count", type=int, help="end after so many mutations")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=[kind.name for kind in KINDS])
    wanted = parser.parse_args()
    findings = Path("fuzz-findings").absolute()
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[str, FuzzTrial] = {}
    source, seed = random.Random(wanted.first), wanted.first
    end = time.monotonic() + 60 * wanted.minutes
    with tempfile.TemporaryDirectory(prefix="mergeops-fuzz-") as folder:
        fuzzer = Fuzzer(Path(folder) / "work")
        while time.monotonic() < end and seed - wanted.first != wanted.count:
            kind = kinds_by_weight(source)
            if wanted.only:
                kind = next(k for k in KINDS if k.name == wanted.only)
            trial = fuzzer.attempt(kind, seed)
            counts[kind.name, trial.end] += 1
            seed += 1
            if trial.end not in BAD:
                continue
            place = fuzzer.folder / f"{kind.name.replace(' ', '-')}-{trial.seed}"
            key = f"{kind.name}: {trial.end}: {trial.where}"
            if key not in found:
                found[key] = trial
                print(f"seed {trial.seed}: {key}", flush=True)
                shutil.copytree(place, findings / place.name, dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(place, ignore_errors=True)
    print(f"\n{'kind':16}" + "".join(f"{e:>14}" for e in ENDS))
    for kind in KINDS:
        print(f"{kind.name:16}" + "".join(f"{counts[kind.name, e]:14}" for e in ENDS))
    print(f"{'all':16}" + "".join(f"{sum(counts[k.name, e] for k in KINDS):14}" for e in ENDS))
    print(f"{sum(counts.values())} mutations, {len(found)} different findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
