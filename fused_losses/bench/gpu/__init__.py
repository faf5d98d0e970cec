"""The benchmark on a GPU: ``python -m fused_losses.bench run --device cuda``.

Modules, in the order in which a run passes through them: `cases` lists the cases and their providers, those
that matter most first; `run` goes through the list and writes rows; `supervisor` has another process do the
tasks, and starts a new process after a task that kills it or hangs it; `worker` is that process; `measure`
verifies and times a provider, and measures its memory; `clock` times kernels apart from the host.
"""
