"""Entry point of ``python -m fused_losses.bench``."""

import sys

try:
    from fused_losses.bench.cli import app
except ModuleNotFoundError as error:
    if error.name not in {"matplotlib", "rich", "typer"}:
        raise
    sys.exit(f"The benchmark needs the package {error.name!r}: pip install 'fused_losses[bench]'")

if __name__ == "__main__":
    app(prog_name="python -m fused_losses.bench")
