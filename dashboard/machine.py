"""What `harness doctor` finds on the machine that serves the pages.

Run as a command of its own, as a user would: the checks belong to `harness`, which the pages may not import, and one that
hangs (a driver, a sandbox) must not take the page with it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from core.errors import HarnessError

# Of a database's URL: whoever may look at the page may not have it.
_PASSWORD = re.compile(r"(://[^:/@\s\"]*):[^@\s\"]*@")
TIMEOUT_SECONDS = 30.0
COMMAND = ("-m", "harness", "doctor", "--json")


def doctor(timeout: float = TIMEOUT_SECONDS, program: Sequence[str] = COMMAND) -> list[dict[str, str]]:
    """Rows {"check", "state": ok|warn|fail, "found", "fix"}. Raises HarnessError when it does not answer.

    The registry it looks at is the pages' own: HARNESS_DB is inherited. `program`: what the interpreter is to run.
    """
    try:
        ended = subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"The checks did not end within {timeout:.0f} s; run `harness doctor` in a terminal.") from error
    try:
        # It exits with 1 where a check failed: the rows say which.
        return json.loads(_PASSWORD.sub(r"\1:***@", ended.stdout))
    except json.JSONDecodeError as error:
        said = ended.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise HarnessError(f"The checks did not run ({said[0][:200]}); run `harness doctor` in a terminal.") from error
