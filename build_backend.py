"""What pip calls to build the package: setuptools; without it, one line that says what to do."""

import sys

try:
    from setuptools.build_meta import *  # noqa: F403
except ImportError:
    sys.exit(
        "fused_losses is built by what is installed, and setuptools>=77 is not: run "
        "`pip install 'setuptools>=77' 'pybind11>=2.13' ninja`, then `pip install --no-build-isolation .`"
    )
