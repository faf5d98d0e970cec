"""Entry point of ``python -m fused_losses.bench``."""

import sys

if __name__ == "__main__":
    try:
        from fused_losses.bench.cli import app

        app(prog_name="python -m fused_losses.bench")
    except ModuleNotFoundError as error:
        # Matplotlib only where something is plotted.
        if error.name not in {"matplotlib", "rich", "typer"}:
            raise
        sys.exit(f"The benchmark needs the package {error.name!r}: pip install 'fused_losses[bench]'")
