"""`python -m tests.faults.metadata_fuzz [--flips N] [--out FILE]`: damage every file of a small store, check, repair.

Each file is cut in half, emptied, taken away, and has single bits flipped. `pipeline.check --verify full` must end with
exit code 7 and name what is wrong, or the damage must change nothing that a JSON reader sees; then `--repair` must
bring back a store that verifies, or refuse with exit code 7 and the reason. No case may end in a stack trace.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline import check

FLIPS = 200
LEAST_FLIPS = 4  # of every file
KINDS = ("cut in half", "emptied", "taken away", "bit flipped")


@dataclass(frozen=True)
class Damage:
    """One file, and what is done to it; `bit` counts from the file's first."""

    key: str
    kind: str
    bit: int = -1

    def apply(self, store: Path) -> None:
        path = store / self.key
        content = path.read_bytes()
        if self.kind == "taken away":
            path.unlink()
        elif self.kind == "emptied":
            path.write_bytes(b"")
        elif self.kind == "cut in half":
            path.write_bytes(content[: len(content) // 2])
        else:
            flipped = bytearray(content)
            flipped[self.bit // 8] ^= 1 << self.bit % 8
            path.write_bytes(bytes(flipped))


@dataclass(frozen=True)
class Outcome:
    """What check said of a damage, and what became of the repair."""

    damage: Damage
    seen: str  # "noticed", "harmless", or what went wrong
    repair: str  # "restored", "other bytes", "refused", "nothing to do", or what went wrong

    @property
    def good(self) -> bool:
        return self.seen in ("noticed", "harmless") and self.repair in (
            "restored", "other bytes", "refused", "nothing to do",
        )  # fmt: skip


def listing(store: Path) -> dict[str, bytes]:
    """{key: content} of all files."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def damages(store: Path, flips: int, seed: int = 0, each: int = LEAST_FLIPS) -> list[Damage]:
    """Every kind for every file; at least `each` flips per file, and `flips` in all."""
    chance = random.Random(seed)
    files = listing(store)
    found = [Damage(key, kind) for key in files for kind in KINDS[:3] if files[key] or kind == "taken away"]
    keys = [key for key in files for _ in range(each)]
    keys += chance.choices(list(files), k=max(0, flips - len(keys)))
    return found + [Damage(key, KINDS[3], chance.randrange(8 * len(files[key]))) for key in keys if files[key]]


def called(*arguments: str) -> tuple[int | str, str]:
    """Exit code of `pipeline.check`, or the stack trace, and all that it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: int | str = check.main(list(arguments))
        except BaseException:
            code = "stack trace: " + traceback.format_exc().strip().splitlines()[-1]
    return code, said.getvalue()


def harmless(before: bytes, after: bytes) -> bool:
    """True where both hold the same JSON."""
    try:
        return bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False


def tried(sound: Path, damage: Damage, whole: dict[str, bytes]) -> Outcome:
    """Damage a copy of a store, check it, repair it, and check again."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / sound.name
        shutil.copytree(sound, store)
        damage.apply(store)
        code, said = called(str(store), "--verify", "full", "--json")
        unit = damage.key.rpartition("/")[2].removesuffix(".json")
        named = damage.key in said or unit in said
        seen = f"exit {code}"
        if code == 7 and named:
            seen = "noticed"
        elif code == 7:
            seen = "exit 7, not named"
        elif code == 0 and damage.kind == KINDS[3] and harmless(whole[damage.key], (store / damage.key).read_bytes()):
            seen = "harmless"
        return Outcome(damage, seen, _repaired(store, seen, whole))


def _repaired(store: Path, seen: str, whole: dict[str, bytes]) -> str:
    code, said = called(str(store), "--verify", "full", "--repair", "--json")
    if code == 7 and said.startswith("error: ") and "cure: " in said:
        return "refused"
    if code != 0:
        return f"repair ends with {code}"
    again, _ = called(str(store), "--verify", "full")
    if again != 0:
        return f"check after repair ends with {again}"
    if listing(store) == whole:
        return "nothing to do" if seen == "harmless" else "restored"
    pixels = {key for key in whole if "/c/" in key}
    same = all((store / key).read_bytes() == whole[key] for key in pixels)
    return "other bytes" if same and listing(store).keys() == whole.keys() else "other pixels or files"


def fuzz(sound: Path, cases: list[Damage], say: bool = False) -> list[Outcome]:
    """All outcomes."""
    whole, outcomes = listing(sound), []
    for number, damage in enumerate(cases, start=1):
        outcomes.append(tried(sound, damage, whole))
        if say and (number % 50 == 0 or not outcomes[-1].good):
            last = outcomes[-1]
            print(f"{number}/{len(cases)} {damage}: {last.seen}, {last.repair}", file=sys.stderr, flush=True)
    return outcomes


def kind_of(key: str) -> str:
    """Files in groups, for the table."""
    if key.endswith("zarr.json"):
        return "zarr.json of the root" if key == "zarr.json" else "zarr.json of groups and arrays"
    if key.startswith("_run/"):
        return next((f"_run/{name}" for name in ("receipts", "overviews", "software") if f"/{name}/" in key), key)
    if key == "stac-item.json":
        return key
    names = ("reflectance", "quality", "scl", "uncertainty")
    return "chunks of images" if any(f"{name}/c/" in key for name in names) else "chunks of coordinates"


def table(outcomes: list[Outcome]) -> str:
    """Markdown: what was damaged, how often, and what became of it."""
    lines = [
        "| damaged | cases | noticed | harmless | restored | refused | otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in sorted({kind_of(one.damage.key) for one in outcomes}):
        mine = [one for one in outcomes if kind_of(one.damage.key) == kind]
        seen, repair = Counter(one.seen for one in mine), Counter(one.repair for one in mine)
        restored = repair["restored"] + repair["other bytes"] + repair["nothing to do"]
        bad = sum(not one.good for one in mine)
        counts = (len(mine), seen["noticed"], seen["harmless"], restored, repair["refused"], bad)
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
    bad = [one for one in outcomes if not one.good]
    return "\n".join(lines + [f"{one.damage}: {one.seen}, {one.repair}" for one in bad])


def main() -> int:
    """Run the fuzz; 1 when a case ended otherwise than it should."""
    from tests.products.stores import make_store

    parser = argparse.ArgumentParser("python -m tests.faults.metadata_fuzz", description=__doc__)
    parser.add_argument("--flips", type=int, default=FLIPS, help="single bits in all (%(default)s)")
    parser.add_argument("--least", type=int, default=LEAST_FLIPS, help="of them, in every file (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="a finished store to damage copies of, instead of a new one")
    parser.add_argument("--part", default="1/1", help="J/N: only every N-th case, from the J-th")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or make_store(Path(folder), chunk_px=192, bands=("B02", "B03", "B04", "B08"))
        first, step = map(int, arguments.part.split("/"))
        cases = damages(store, arguments.flips, arguments.seed, arguments.least)[first - 1 :: step]
        outcomes = fuzz(store, cases, say=True)
    text = table(outcomes) + f"\n\n{len(outcomes)} cases, {time.monotonic() - started:.0f} s\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return int(any(not one.good for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
