"""The stages of a session, in their order: each writes files as it goes, and returns whether it passed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import boxes
from session import HERE, PACKAGES, ROOT, Session

SMOKE = "tests/test_losses.py::test_each_strategy"
SERVED = "tests/test_gpu.py::test_kernels_serve_the_gpu"

# Files of tests, those that say most first. test_conformance.py takes hours: `make test-gpu` has it.
TESTS = (
    "gpu*",
    "sizes",
    "cross_entropy_edges",
    "shards",
    "extensions",
    "cross_entropy_terms",
    "losses",
    "backward_contract",
)

HANG = {"smoke": 40, "tests": 60}
"""Seconds after which a test is taken to hang: more than it takes to compile some kernels, or a graph."""

WARMERS = 4
"""Processes that compile what the benchmark will need, beside the smoke stage's on the other cores."""

CLOCKS = (
    "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,"
    "clocks_event_reasons.active"
)


def versions(session: Session) -> bool:
    """What the machine has, and how fast it says that it runs."""
    _ask(session, "nvidia-smi", CLOCKS, "--format=csv")
    _ask(session, "nvcc", "--version")
    return session.python(30, "session.log", "-m", "torch.utils.collect_env") == 0


def library(session: Session) -> bool:
    """The kit's packages, and libraries that run."""
    wheels = sorted(map(str, session.kit.glob("wheels/*.whl")))
    if wheels:
        install = ("install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(PACKAGES))
        session.python(60, "library.log", "-m", "pip", *install, *wheels)
    place = (str(HERE / "libraries.py"), "place", str(session.kit / "libraries"), session.device)
    status = session.python(270, "library.log", *place, FUSED_LOSSES_CUDA="0" if session.dry else "1")
    if status != 0:
        session.backends.remove("compiled")
    session.python(30, "session.log", "-m", "fused_losses.info")
    return status == 0


def smoke(session: Session) -> bool:
    """Every loss, dtype, reduction and strategy: 60 to 75 seconds for a backend."""
    # In a rehearsal, the first of a thousandth of the cases, which is one case.
    parts = ["0/1000"] if session.dry else [f"{k}/{WARMERS}" for k in range(WARMERS)]
    session.warmers = [
        session.start("benchmark.log", *_benchmark("warm", session, "--part", part)) for part in parts
    ]
    what = [SMOKE, "-k", "float32"] if session.dry else [SERVED, SMOKE]
    workers = max(1, session.workers - len(session.warmers))
    passed = [
        _test(session, seconds, "smoke", backend, workers, *what)
        for backend, seconds in (("compiled", 60), ("triton", 75))
        if backend in session.backends
    ]
    return all(passed)


def benchmark(session: Session) -> bool:
    """Nothing else runs meanwhile."""
    failed = session.dry and any(session.finish(*session.warmers, seconds=60))
    for warmer in session.warmers:
        boxes.kill(warmer)
    options = ["--csv", str(session.out / "benchmark.csv")]
    if session.dry:
        options += ["--loss=cross_entropy", "--dtype=float32", "--shape=8x70", "--provider=cuda fused"]
    seconds = max(1, int(min(60 if session.dry else 165, session.left() - 20)))
    command = _benchmark("run", session, *options, "--seconds", str(seconds))
    # It ends by itself in time, but for its start and the case that it is at.
    status = session.run(seconds + 40, "benchmark.log", *command)
    _ask(session, "nvidia-smi", CLOCKS, "--format=csv")
    return status == 0 and not failed


def profile(session: Session) -> bool:
    """Which kernels a step launches."""
    options = ["--csv", str(session.out / "kernels.csv"), "--device", session.device]
    if session.dry:
        options += ["--tiny", "--backend", "compiled"]  # the interpreter launches nothing
    return session.python(40, "tools.log", str(HERE / "kernels.py"), *options) == 0


def tests(session: Session) -> bool:
    """The rest of the tests of kernels."""
    names = ("gpu*", "extensions") if session.dry else TESTS
    files = [str(path) for name in names for path in sorted(ROOT.glob(f"tests/test_{name}.py"))]
    passed = [
        _test(session, seconds, "tests", backend, session.workers, *files, f"--deselect={SMOKE}")
        for backend, seconds in (("compiled", 90), ("triton", 60))
        if backend in session.backends
    ]
    return all(passed)


def tools(session: Session) -> bool:
    """A few kernels under each of compute-sanitizer's tools, side by side; then the counters of one."""
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer and not session.dry:
        session.say("tools: there is no compute-sanitizer")
        return False
    few = "float32 and mean and (cross_entropy or mse or multi_margin or triplet_margin_loss)"
    pytest = [sys.executable, "-m", "pytest", "-n0", "--tb=short"]
    pytest += [f"--device={session.device}", SMOKE, "-k", few]
    running = {}
    for tool in ("memcheck",) if session.dry else ("memcheck", "racecheck", "initcheck"):
        under = [] if session.dry else [str(sanitizer), "--tool", tool, "--error-exitcode", "9"]
        for backend in session.backends[:1] if session.dry else session.backends:
            environment = session.environment_of(backend)
            name = f"{tool}, {backend}"
            running[name] = session.start("tools.log", *under, *pytest, label=name, **environment)
    found = session.finish(*running.values(), seconds=75)
    session.say(*(f"{name}: exit status {status}" for name, status in zip(running, found, strict=True)))
    if shutil.which("ncu") and session.has_time() and not session.dry:
        # Names of CUDA's kernel and of Triton's.
        counters = ["ncu", "--clock-control=none", "--set=detailed", "-k", "regex:softmax|cross_entropy"]
        one = ["--loss", "cross_entropy", "--backend", *session.backends]
        session.run(60, "tools.log", *counters, sys.executable, str(HERE / "kernels.py"), *one)
    return not any(found)


def _ask(session: Session, *command: str) -> None:
    """A program that says something of the machine, if it is there."""
    if shutil.which(command[0]):
        session.run(10, "session.log", *command)


def _benchmark(verb: str, session: Session, *options: str) -> list[str]:
    tiny = ["--tiny"] if session.dry else []
    return [sys.executable, "-m", "fused_losses.bench", verb, "--device", session.device, *options, *tiny]


def _test(session: Session, seconds: float, run: str, backend: str, workers: int, *what: str) -> bool:
    """Tests by some processes, of which one that is lost costs the test it was at."""
    if not session.has_time():
        session.say(f"{run}, {backend}: no time is left")
        return False
    status = session.python(
        seconds,
        "tests.log",
        *("-m", "pytest", "-n", str(workers), "-p", "guard", f"--device={session.device}", *what),
        *("--outcomes", str(session.out / "tests.csv"), "--run", f"{run}, {backend}"),
        *("--tb=short", "--no-summary", "--max-worker-restart=200", "--maxschedchunk=3"),
        *("-o", f"faulthandler_timeout={HANG[run]}", "-o", "faulthandler_exit_on_timeout=true"),
        **session.environment_of(backend),
    )
    if status == boxes.STOPPED:
        session.say(f"{run}, {backend}: stopped before its end")
    return status == 0


STAGES: dict[str, Callable[[Session], bool]] = {
    stage.__name__: stage for stage in (versions, library, smoke, benchmark, profile, tests, tools)
}
