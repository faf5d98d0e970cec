"""The benchmark on a GPU: ``python -m fused_losses.bench run --device cuda``.

Modules, in the order in which a run passes through them: `cases` lists what is measured and who is, what
matters most first; `run` goes through the list and writes rows; `supervisor` has another process do the
tasks, and starts a new one behind a task that it died of or hangs in; `worker` is that process; `measure`
verifies, weighs and times a provider; `clock` tells the time of kernels from that of the host.
"""
