"""The stages of a session, in their order: each writes files as it goes, and returns whether it passed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import boxes
import libraries
from session import HERE, PACKAGES, ROOT, Session

SMOKE = "tests/losses/test_losses.py::test_each_strategy"
SERVED = "tests/backends/test_gpu.py::test_kernels_serve_the_gpu"

# Files of tests, those that say most first. test_conformance.py takes hours: `make test-gpu` has it.
TESTS = (
    "backends/test_gpu*",
    "losses/test_special_values",
    "losses/test_devices",
    "losses/test_sizes",
    "losses/test_random_steps",
    "softmax/test_cross_entropy_edges",
    "distributed/test_shards",
    "losses/test_extensions",
    "softmax/test_cross_entropy_terms",
    "softmax/test_cross_entropy_operators",
    "losses/test_losses",
    "losses/test_autocast",
    "linear/test_linear_ignored",
    "contract/test_backward_contract*",
)

HANG = {"smoke": 40, "tests": 60}
"""Seconds after which a test is taken to hang: more than it takes to compile some kernels, or a graph."""

SMOKES = (("compiled", "", 60), ("triton", "bfloat16", 45), ("triton", "float32", 45))
"""Backends, the one dtype of their tests, if not all, and seconds. Triton's kernels of four dtypes would take
twenty minutes of one core to compile."""

SANITIZERS = {"memcheck": 45, "racecheck": 45, "initcheck": 30}
"""compute-sanitizer's tools, what says most first, and the seconds that each may take."""

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
    return session.python(60, "session.log", "-m", "torch.utils.collect_env") == 0


def library(session: Session) -> bool:
    """The kit's packages, and libraries that run."""
    wheels = sorted(map(str, session.kit.glob("wheels/*.whl")))
    if wheels:
        install = ("install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade")
        session.python(60, "library.log", "-m", "pip", *install, "--target", str(PACKAGES), *wheels)
    place = (str(HERE / "libraries.py"), "place", str(session.kit / "libraries"), session.device)
    status = session.python(270, "library.log", *place, FUSED_LOSSES_CUDA="0" if session.dry else "1")
    if status not in (0, libraries.LOADED):  # which losses fail is the next stage's to find out
        session.backends.remove("compiled")
        session.leave_out("compiled kernels, as no library loads; library.log says why")
    session.python(30, "session.log", "-m", "fused_losses.info")
    return status == 0


def smoke(session: Session) -> bool:
    """Every loss, reduction and strategy; in every dtype by the compiled kernels, in two by Triton's."""
    # In a rehearsal, the first of a thousandth of the cases, which is one case.
    parts = ["0/1000"] if session.dry else [f"{k}/{WARMERS}" for k in range(WARMERS)]
    session.warmers = [
        session.start("benchmark.log", *_benchmark("warm", session, "--part", part)) for part in parts
    ]
    workers = max(1, session.workers - len(session.warmers))
    passed = []
    for backend, dtype, seconds in SMOKES[:2] if session.dry else SMOKES:
        if backend not in session.backends:
            continue
        some = dtype or ("float32" if session.dry else "")
        what = [SERVED, SMOKE] if not session.dry else [SMOKE]
        what += ["-k", f"serve or {some}"] if some else []
        passed.append(_test(session, seconds, "smoke", backend, workers, *what, only=dtype))
    if not session.dry:
        session.leave_out("smoke, triton, float16 and float64, which take too long to compile")
    return all(passed)


def benchmark(session: Session) -> bool:
    """Nothing else runs meanwhile."""
    failed = session.dry and any(session.finish(*session.warmers, seconds=60))
    for warmer in session.warmers:
        boxes.kill(warmer)
    # The folder may be an earlier session's, and a run writes over no file.
    (session.out / "benchmark.csv").unlink(missing_ok=True)
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
    # The interpreter launches nothing.
    chosen = session.backends[:1] if session.dry else session.backends
    options = ["--csv", str(session.out / "kernels.csv"), "--device", session.device, "--backend", *chosen]
    if session.dry:
        options.append("--tiny")
    return session.python(60, "tools.log", str(HERE / "launches.py"), *options) == 0


def tests(session: Session) -> bool:
    """The rest of the tests of kernels."""
    names = ("backends/test_gpu*", "losses/test_extensions") if session.dry else TESTS
    files = [str(path) for name in names for path in sorted(ROOT.glob(f"tests/{name}.py"))]
    passed = [
        _test(session, seconds, "tests", backend, session.workers, *files, f"--deselect={SMOKE}")
        for backend, seconds in (("compiled", 90), ("triton", 60))
        if backend in session.backends
    ]
    return all(passed)


def tools(session: Session) -> bool:
    """A few kernels of both backends under each of compute-sanitizer's tools; then the counters of one."""
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer and not session.dry:
        session.say("tools: there is no compute-sanitizer")
        return False
    few = "float32 and mean and (cross_entropy or mse or multi_margin or triplet_margin_loss)"
    pytest = [sys.executable, "-m", "pytest", "-n0", "--tb=short"]
    pytest += [f"--device={session.device}", SMOKE, "-k", few]
    passed = True
    for tool, seconds in SANITIZERS.items():
        if not session.has_time():
            session.leave_out(f"{tool}, as no time is left")
            passed = False
            continue
        under = [str(sanitizer), "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        running = {}
        for backend in session.backends[:1] if session.dry else session.backends:
            environment = session.environment_of(backend)
            name = f"{tool}, {backend}"
            command = pytest if session.dry else under + pytest
            running[name] = session.start("tools.log", *command, label=name, **environment)
        found = session.finish(*running.values(), seconds=seconds)
        session.say(*(f"{name}: exit status {status}" for name, status in zip(running, found, strict=True)))
        passed = passed and not any(found)
        if session.dry:  # which has no sanitizer: the others would be the same tests again
            break
    if shutil.which("ncu") and session.has_time() and not session.dry:
        # Names of CUDA's kernel and of Triton's.
        counters = ["ncu", "--clock-control=none", "--set=detailed", "-k", "regex:softmax|cross_entropy"]
        one = ["--loss", "cross_entropy", "--backend", *session.backends]
        session.run(60, "tools.log", *counters, sys.executable, str(HERE / "launches.py"), *one)
    return passed


def _ask(session: Session, *command: str) -> None:
    """A program that says something of the machine, if it is there."""
    if shutil.which(command[0]):
        session.run(10, "session.log", *command)


def _benchmark(verb: str, session: Session, *options: str) -> list[str]:
    tiny = ["--tiny"] if session.dry else []
    return [sys.executable, "-m", "fused_losses.bench", verb, "--device", session.device, *options, *tiny]


def _test(
    session: Session, seconds: float, stage: str, backend: str, workers: int, *what: str, only: str = ""
) -> bool:
    """Tests by some processes, of which one that is lost costs the test it was at."""
    run = ", ".join(filter(None, (stage, backend, only)))
    if not session.has_time():
        session.leave_out(f"{run}, as no time is left")
        return False
    status = session.python(
        seconds,
        "tests.log",
        *("-m", "pytest", "-n", str(workers), "-p", "guard", f"--device={session.device}", *what),
        *("--outcomes", str(session.out / "tests.csv"), "--run", run),
        *("--tb=short", "--no-summary", "--max-worker-restart=200", "--maxschedchunk=3"),
        *("-o", f"faulthandler_timeout={HANG[stage]}", "-o", "faulthandler_exit_on_timeout=true"),
        **session.environment_of(backend),
    )
    if status == boxes.STOPPED:
        session.say(f"{run}: stopped before its end")
    return status == 0


STAGES: dict[str, Callable[[Session], bool]] = {
    stage.__name__: stage for stage in (versions, library, smoke, benchmark, profile, tests, tools)
}
