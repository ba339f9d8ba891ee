"""Measure the platform beside the plain way of doing the same, on this machine.

    python -m wiki_assets_tests.bench                       all three subjects, a few minutes
    python -m wiki_assets_tests.bench articles --repeats 5 --dump enwiki-20251229-cirrussearch-content.json.gz

Work per CPU-second of all processes; the best repeat of each side; ratios of neighbouring repeats, and a goal
is met by their median. Exits 0 whether goals are met or not: a busy machine is no error.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from wiki_assets_tests.bench.measure import REPOSITORY, Row, machine, table

SUBJECTS = ("articles", "embeddings", "index")


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m wiki_assets_tests.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"any of {', '.join(SUBJECTS)}; default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--times", type=int, default=4, help="read each article so many times, so that a side takes seconds; default 4"
    )
    parser.add_argument(
        "--dump",
        type=Path,
        action="append",
        default=[],
        help="a dump file, or a folder of one snapshot's; may be repeated",
    )
    parser.add_argument("--json", type=Path, help="write the table here too")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.subjects) - set(SUBJECTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(SUBJECTS)}")
    if chosen.repeats < 1 or chosen.times < 1:
        parser.error("--repeats, --times: expected at least 1")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
    )  # for Ray's workers
    from wiki_assets_tests.bench.dumps import find_dumps

    dumps = find_dumps(chosen.dump)
    rows: list[Row] = []
    started, about = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="wiki_assets-bench-") as folder:
        for subject in SUBJECTS:
            if chosen.subjects and subject not in chosen.subjects:
                continue
            print(subject, flush=True)
            target = Path(folder) / subject
            target.mkdir()
            if subject == "articles":
                from wiki_assets_tests.bench.articles import compare_articles

                rows += compare_articles(dumps, chosen.repeats, chosen.times, target)
            elif subject == "embeddings":
                from wiki_assets_tests.bench.embeddings import compare_embeddings

                rows += compare_embeddings(dumps[0], chosen.repeats)
            else:
                from wiki_assets_tests.bench.index import compare_index

                rows += compare_index(dumps[0], chosen.repeats, target)
    print(f"\n{table(rows)}\n\n{about}")
    took = f"{time.monotonic() - started:.0f} s, {chosen.repeats} repeats"
    print(f"{took}; ratio: work per CPU-second, ours to the other side")
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"machine": about, "repeats": chosen.repeats, "rows": [row.as_dict() for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
