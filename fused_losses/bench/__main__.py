"""Entry point of ``python -m fused_losses.bench``."""

import sys


def main() -> int:
    """Runs a command, and returns its exit status; what is wrong with its options is one line."""
    try:
        from fused_losses.bench.cli import app
        from fused_losses.bench.options import UsageError
    except ModuleNotFoundError as error:
        # Matplotlib only where something is plotted.
        if error.name not in {"rich", "typer"}:
            raise
        print(_missing(error), file=sys.stderr)
        return 1
    try:
        arguments = sys.argv[1:] or ["--help"]
        status: int | None = app(arguments, "python -m fused_losses.bench", standalone_mode=False)
        return status or 0
    except UsageError as error:
        print(f"Error: {error.format_message()}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print(_missing(error), file=sys.stderr)
        return 1


def _missing(error: ModuleNotFoundError) -> str:
    return f"The benchmark needs the package {error.name!r}: pip install 'fused_losses[bench]'"


if __name__ == "__main__":
    sys.exit(main())
