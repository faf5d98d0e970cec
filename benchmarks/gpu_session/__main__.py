"""All that ten minutes on a GPU can tell, the essential first, without network.

    python3 benchmarks/gpu_session [--dry] [--stages smoke tests] [--seconds 570] [--out FOLDER]
        [--kit FOLDER]

docs/gpu.md says what each stage does and what comes back. `--dry` goes through all stages on a CPU, at tiny
sizes. The exit status is 1 if a stage has failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

import boxes
import table
from session import ROOT, Session
from stages import STAGES


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=570.0, help="for all of it; 570 by default")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-session")
    parser.add_argument("--kit", type=Path, default=ROOT / ".gpu")
    options = parser.parse_args()
    # Whoever ends this ends all that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    session = Session(options.out.resolve(), options.kit.resolve(), options.dry, options.seconds)
    failed = set(options.stages)
    try:
        for stage in options.stages:
            if passes(session, stage):
                failed.remove(stage)
    finally:
        boxes.kill_all()
        session.say(*table.lines(session.out), *session.not_run)
        unfinished = ", ".join(stage for stage in options.stages if stage in failed)
        session.say(f"failed or not finished: {unfinished}" if unfinished else "all stages passed")
    return 1 if failed else 0


def passes(session: Session, stage: str) -> bool:
    if not session.has_time():
        session.leave_out(f"{stage}, as no time is left")
        return False
    session.say(f"{stage}: {session.left():.0f} s are left")
    began = time.monotonic()
    try:
        passed = STAGES[stage](session)
    except Exception:  # of a machine that is not as expected; the other stages may still tell something
        session.say(traceback.format_exc())
        passed = False
    session.say(f"{stage}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s")
    return passed


if __name__ == "__main__":
    sys.exit(main())
