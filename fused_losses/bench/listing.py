"""``list``: what a run's options may be."""

from rich import box
from rich.table import Table

from fused_losses.bench.cases import DTYPES, SIZES, form
from fused_losses.bench.heads import HEADS
from fused_losses.bench.providers import BY_DEVICE, PROVIDERS
from fused_losses.bench.report import console
from fused_losses.bench.variants import VARIANTS
from fused_losses.registry import LOSSES


def command() -> None:
    """Lists losses with the shapes that they take, dtypes, sizes, variants and providers."""
    losses = _table("--loss", "--shape")
    for name in (*LOSSES, *HEADS):
        losses.add_row(name, form(name))
    console.print(losses)
    variants = _table("--variant", "of")
    for name, variant in VARIANTS.items():
        variants.add_row(name or "usual", ", ".join(variant.losses) or "every loss")
    console.print(variants)
    providers = _table("--provider", "runs", "of")
    for name, provider in PROVIDERS.items():
        of = "every loss" if provider.losses >= {*LOSSES, *HEADS} else ", ".join(sorted(provider.losses))
        providers.add_row(name, "anywhere" if name in BY_DEVICE else "with --device cuda", of)
    console.print(providers)
    console.print(f"--dtype: {', '.join(DTYPES)}\n--size: {', '.join(SIZES)}", highlight=False)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading)
    return table
