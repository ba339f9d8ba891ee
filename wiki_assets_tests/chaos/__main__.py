"""Run the fault suite, and write what it found.

    python -m wiki_assets_tests.chaos --tier pr --seed 1 [--row K2 --row C3] [--json FILE] [--markdown FILE]

Exits 0 when every test that could run has passed, and every mutant was caught.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

from wiki_assets_tests.chaos.report import Collector, document, markdown, put_into_readme


def main(arguments: list[str]) -> int:
    """Run, write the files, and say in a line how it went."""
    parser = argparse.ArgumentParser(
        prog="python -m wiki_assets_tests.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tier", choices=["pr", "nightly"], default="pr")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--row", action="append", default=[], help="only these rows, such as K2; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("chaos.json"))
    parser.add_argument("--markdown", type=Path, default=Path("chaos.md"))
    parser.add_argument("--readme", type=Path, help="put the table of promises into this file, between its marks")
    chosen = parser.parse_args(arguments)
    collector = Collector(set(chosen.row))
    began = time.monotonic()
    options = [
        "-q",
        "-m",
        "chaos" if chosen.tier == "nightly" else "chaos and not nightly",
        "--chaos-tier",
        chosen.tier,
    ]
    code = pytest.main([str(Path(__file__).parent), *options, "--chaos-seed", str(chosen.seed)], plugins=[collector])
    found = document(collector.rows, tier=chosen.tier, seed=chosen.seed, seconds=time.monotonic() - began)
    chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    chosen.markdown.write_text(markdown(found))
    if chosen.readme:
        put_into_readme(chosen.readme, found)
    caught, planted = found["mutants"]["caught"], found["mutants"]["planted"]
    print(f"{len(found['rows'])} rows in {found['seconds']} s; mutants caught: {caught} of {planted}")
    return int(code) or int(caught < planted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
