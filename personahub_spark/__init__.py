"""Persona Hub on Spark: web text to personas to synthetic data, paid once and traceable."""

import sys
import traceback
from types import TracebackType

__version__ = "0.1.0"

_shown_by_others = sys.excepthook


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with one sentence where Ctrl-C comes while a program still imports; any other error is shown as before."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(trace)]
    # The program is a module itself.
    modules = [code for code in codes if code.co_name == "<module>" or code.co_filename.startswith("<frozen importlib")]
    if not issubclass(kind, KeyboardInterrupt) or len(modules) < 2:
        _shown_by_others(kind, error, trace)
        return
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}stopped before anything was begun", file=sys.stderr)
    sys.exit(130)


# Here, so that it holds for all programs: some of what they import takes seconds, and none of it is begun before this.
sys.excepthook = _show
