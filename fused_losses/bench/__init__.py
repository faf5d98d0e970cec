"""The benchmark command: ``python -m fused_losses.bench run``.

Modules, in the order in which a run passes through them: `cli` reads the options, `cases` lists
what is measured, `providers` lists who is measured, `accuracy` decides who may be timed, `timing`
times them in turn, `memory` measures a step in a fresh process, `session` strings these together,
`rows` is what they find and its CSV, `summary` what it says as a whole, `report` prints both.
"""
