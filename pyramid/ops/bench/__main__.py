"""python -m pyramid.ops.bench: the ops alone, where only torch is installed; `pyramid bench ops` times training too."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pyramid.ops.bench import OPS, Report, default_cases, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pyramid.ops.bench", description="Time the ops beside others.")
    parser.add_argument("--op", action="append", choices=OPS, help="only this op; may be repeated")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    parser.add_argument("--out", type=Path, help="write OUT.txt and OUT.json too")
    args = parser.parse_args()

    def say_row(row: dict, text: str) -> None:
        print(json.dumps(row) if args.json else text, flush=True)

    def say(text: str) -> None:
        if not args.json:
            print(text, flush=True)

    report = Report(args.device, say_row, say)
    try:
        for case in default_cases(args.device):
            for result in run([case]) if args.op is None or case.op in args.op else ():
                report.add(result)
    finally:  # what was measured before a fault is kept
        report.close(args.out)


if __name__ == "__main__":
    main()
