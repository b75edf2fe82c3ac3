"""Choose what the fast tier leaves out, from how long a run of the tests took; run by hand, nothing reads its output.

python -m pytest -m "slow or not slow" --junitxml=times.xml
python -m tests.durations times.xml --budget 90             # the dearest tests, until the rest takes 90 s of one core
python -m tests.durations times.xml --over 1 --write        # those over a second get @pytest.mark.slow
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

Times = dict[tuple[Path, str], list[float]]


def read(report: Path) -> Times:
    """Read a junit file: seconds with fixtures of every parameter, by file and function."""
    times: Times = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        path = Path(*case.attrib["classname"].split(".")).with_suffix(".py")
        times[path, case.attrib["name"].partition("[")[0]].append(float(case.attrib["time"]))
    return times


def chosen(times: Times, over: float | None, budget: float | None) -> list[tuple[Path, str]]:
    """Choose functions with a parameter over so many seconds, or those of the largest sums until the rest fits."""
    if over is not None:
        return sorted(test for test, seconds in times.items() if max(seconds) > over)
    left, found = sum(map(sum, times.values())), []
    for test in sorted(times, key=lambda test: -sum(times[test])):
        if budget is not None and left > budget:
            found.append(test)
            left -= sum(times[test])
    return found


def mark(path: Path, name: str) -> None:
    text = path.read_text(encoding="utf-8")
    match = re.search(rf"(?m)^((?:@[^\n]*\n(?:[ )\]][^\n]*\n)*)*)def {re.escape(name)}\(", text)
    if match and "mark.slow" not in match[1]:
        path.write_text(f"{text[: match.start()]}@pytest.mark.slow\n{text[match.start() :]}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--over", type=float)
    parser.add_argument("--budget", type=float, default=90)
    parser.add_argument("--write", action="store_true", help="set the marks in the files")
    arguments = parser.parse_args()
    times = read(arguments.report)
    slow = chosen(times, arguments.over, arguments.budget)
    for path, name in slow:
        print(f"{sum(times[path, name]):8.1f} s in {len(times[path, name]):4} of {path}::{name}")
        if arguments.write:
            mark(path, name)
    print(f"{sum(map(sum, times.values())) - sum(sum(times[test]) for test in slow):8.1f} s in all the others")
