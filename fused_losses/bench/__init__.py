"""The benchmark: ``python -m fused_losses.bench run``, and what is made of its results.

Modules, in the order in which a run passes through them: `cli` reads the options, `cases` lists what is
measured, `providers` lists who is measured, `accuracy` decides by the rule of `tolerance` who may be timed,
`timing` times them in turn, `memory` measures a step in a fresh process, `session` strings these together,
`measured` makes rows of what they find, `rows` is these and their CSV, `destination` is which file they go
to, `progress` what a run says meanwhile, `summary` what it says as a whole, `report` prints both. `heads` has
the cases that include a linear layer, `variants` those with other options. `gpu` is what differs in a run on
a GPU. A command each: `listing` of what options may be, `profiling` of a step, `compare` of two runs, `plots`
of one, by `figures`, `prediction` of the memory that `model` says a step takes, `errors` against float64.
"""
