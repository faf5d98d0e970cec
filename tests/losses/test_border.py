"""The operators `torch.ops.fused_losses.*` may be called by anyone with anything.

A wrong argument is an error that names it, what was expected and what was found: never a crash, a silent
result, or memory that nothing wrote. A right one yields what torch's own operators yield.
"""

from __future__ import annotations

import pytest
from kit.border.calls import OTHERS, OtherBase, bases
from kit.border.values import changes
from kit.border.walk import GOOD, IMPOSSIBLE, Attempt, walk

from fused_losses.registry import LOSSES


@pytest.mark.parametrize("name", [*LOSSES, *OTHERS])
def test_wrong_arguments(name, call_counts):
    right = [OtherBase(name)] if name in OTHERS else bases(name)
    attempts = [Attempt(base, change) for base in right for change in changes(base)]
    verdicts = walk(attempts)
    wrong = [
        f"{attempt} {verdict}: {words}"
        for attempt, (verdict, words) in zip(attempts, verdicts, strict=True)
        if verdict not in GOOD
    ]
    call_counts.update(verdict for verdict, _ in verdicts if verdict != IMPOSSIBLE)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(attempts)} calls:", *wrong])
