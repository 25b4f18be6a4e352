"""The one exception tree.

    HarnessError                 a user's mistake or a condition of the machine: one sentence that names the fix
    ├── RecipeError              (ValueError)         the recipe does not validate
    ├── MissingInput             (FileNotFoundError)  a model, data file or tool is not there
    ├── HashMismatch             (ValueError)         bytes differ from the recorded sha256
    ├── UnsafeCheckpoint         (ValueError)         a third-party checkpoint that would run code
    ├── DiskFull                 (OSError)            not enough space for what comes next
    ├── RunInUse                 (RuntimeError)       another process owns the run
    ├── RegistryError            (RuntimeError)       the registry cannot be used as it is
    ├── JudgeError               (RuntimeError)       a judge without key, endpoint or answer; its budget reached
    ├── SandboxUnavailable       (RuntimeError)       generated code cannot be contained here
    └── StageFailed              (RuntimeError)       a stage process ended with an error

Everything else is a defect of ours and ends in a traceback.
"""


class HarnessError(Exception):
    """Base of all expected failures; `str(error)` is one sentence with the fix."""


class RecipeError(HarnessError, ValueError):
    """The recipe does not validate; the message lists every fault with file and line."""


class MissingInput(HarnessError, FileNotFoundError):
    """A model, data file or tool is not there."""


class HashMismatch(HarnessError, ValueError):
    """Bytes on disk differ from the recorded sha256."""


class UnsafeCheckpoint(HarnessError, ValueError):
    """A checkpoint that could run code when loaded (pickles, `auto_map`, Python files)."""


class DiskFull(HarnessError, OSError):
    """Not enough free space for what comes next."""


class RunInUse(HarnessError, RuntimeError):
    """Another live process owns this run."""


class RegistryError(HarnessError, RuntimeError):
    """The registry is missing, of another version, or on a file system that cannot hold it."""


class JudgeError(HarnessError, RuntimeError):
    """A judge without a key, an endpoint, or what it is asked for."""


class SandboxUnavailable(HarnessError, RuntimeError):
    """Generated code cannot be contained on this machine."""


class StageFailed(HarnessError, RuntimeError):
    """A stage process ended with an error; the message names its log."""
