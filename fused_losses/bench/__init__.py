"""The benchmark: ``python -m fused_losses.bench run``, and what is made of its results.

Modules, in the order in which a run passes through them: `cli` reads the options, `cases` lists
what is measured, `providers` lists who is measured, `accuracy` decides who may be timed, `timing`
times them in turn, `memory` measures a step in a fresh process, `session` strings these together,
`rows` is what they find and its CSV, `summary` what it says as a whole, `report` prints both. `heads`
has the cases that include a linear layer. A command each: `compare` of two runs, `plots` of one,
`prediction` of the memory that `model` says a step takes, `errors` against float64.
"""
