"""A PostgreSQL server for the tests and for `python -m benchmarks.faults`, for as long as it is needed.

It needs the programs of Debian's package postgresql, and uses one folder and loopback only.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

ACCOUNT = "nobody"  # the server refuses to run as root


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, if there is one."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    return installed[-1].parent if installed else Path(on_path).parent if on_path else None


class PostgreSql:
    """A server with one database and one user, on a free port; `url` is for storage.url."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        bin_folder = programs()
        if bin_folder is None:
            raise FileNotFoundError("PostgreSQL's programs are not installed: apt-get install postgresql")
        self.bin = bin_folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://study:secret@127.0.0.1:{self.port}/studies"

    def __enter__(self) -> Self:
        folder = self.data.parent
        if os.getuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            os.chown(folder, account.pw_uid, account.pw_gid)
        password = folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        access = ["-U", "study", "-A", "scram-sha-256", f"--pwfile={password}"]
        self._run("initdb", "-D", str(self.data), "-E", "UTF8", *access, "--no-sync")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "study", "studies")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", str(self.data), "-o", settings, "-l", str(self.data.parent / "log"), "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def cut_connections(self) -> None:
        """Cut all connections, also those in use."""
        query = (
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = 'studies'"
        )
        self._run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "study", "-q", "-c", query, "studies")

    def _run(self, program: str, *arguments: str) -> None:
        as_account = ["setpriv", f"--reuid={ACCOUNT}", "--clear-groups"] if os.getuid() == 0 else []
        environment = {**os.environ, "PGPASSWORD": "secret", "LC_ALL": "C"}
        subprocess.run(
            [*as_account, str(self.bin / program), *arguments],
            check=True,
            env=environment,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
