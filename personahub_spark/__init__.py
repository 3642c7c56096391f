"""Persona Hub on Spark: web text to personas to synthetic data, paid once and traceable."""

import sys
import traceback
from types import TracebackType

__version__ = "0.1.0"

_shown_by_others = sys.excepthook


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with one sentence on Ctrl-C while a program still imports; any other error is shown as usual."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(trace)]
    # The program is a module itself.
    modules = [code for code in codes if code.co_name == "<module>" or code.co_filename.startswith("<frozen importlib")]
    if not issubclass(kind, KeyboardInterrupt) or len(modules) < 2:
        _shown_by_others(kind, error, trace)
        return
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}stopped before anything was begun", file=sys.stderr)
    sys.exit(130)


# Set here, before any other import of a program: some imports take seconds.
sys.excepthook = _show
