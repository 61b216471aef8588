"""Prefect over the DVC graph: when and how a run happens. What a stage does, it knows nothing of.

The settings below must be in the environment before prefect is imported; one that is already there wins.
"""

import os
import socket
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _port() -> int:
    given = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    if not given.isdecimal() or len(given) > 5 or not 0 < int(given) < 2**16:
        raise SystemExit(f"error: PREFECT_SERVER_API_PORT={given!r}: must be a port, 1 to 65535; or unset it")
    return int(given)


HOST, PORT = "127.0.0.1", _port()
SETTINGS = {
    "PREFECT_HOME": str(ROOT / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)


def server_url() -> str | None:
    """The API to report to: the one the environment names, or our own server's when it is up, or none."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        return url
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return f"http://{HOST}:{PORT}/api" if connection.connect_ex((HOST, PORT)) == 0 else None
