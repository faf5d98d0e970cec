"""The benchmark command: ``python -m fused_losses.bench run``.

Modules, in the order in which a run passes through them: `cli` reads the options, `cases` lists
what is measured, `providers` lists who is measured, `accuracy` decides who may be timed, `timing`
times them in turn, `memory` measures a step in a fresh process, `report` writes table and CSV;
`session` strings them together.
"""
