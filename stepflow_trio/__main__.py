"""``python -m stepflow_trio`` is ``stepflow-trio``."""

from stepflow_trio.cli import main

main()
