"""What every command has in common: Hydra, logging, and errors as one line with an exit code.

`python -m search.NAME` and `hilo-nas NAME` both end here. A command's own module is imported after its configuration was
composed: torch and what builds on it take ten seconds, which `--help` need not wait for.

Errors of three kinds end a command. A user's mistake (`UserError`) and what stops a correct command (`SearchStopped`, a disk
that is full or cannot be written, a database that is away or broken) are one line, and their traceback is in the log.
Anything else is a bug, and printed with its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from search import SearchStopped, UserError, causes, one_line
from search.commands.overrides import as_typed

log = logging.getLogger(__name__)
STOPPED = 1
USER_MISTAKE = 2
INTERRUPTED = 130
TERMINATED = 143
RESOURCE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOSPC", "ENOTDIR", "EPERM", "EPIPE", "EROFS", "ESTALE",
    )
)  # fmt: skip
"""Errors of the system that are about a disk, a file's permissions or a closed output. Others, such as a missing file, are a
user's mistake only where a command says so."""
PROGRESS_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
"""Variables that switch the progress bars of libraries off; the processes of workers inherit them."""

CONTINUE = "stopped; run the same command again to continue"
COMMANDS = {
    "run": CONTINUE,
    "check": CONTINUE,
    "confirm": CONTINUE,
    "train": CONTINUE,
    "export": "stopped",
    "measure": "stopped",
    "report": "stopped",
    "dashboard": "stopped",
}
"""What to print after Ctrl-C or SIGTERM, by command."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


def conf_dir() -> Path:
    """The folder of configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def hilo_nas() -> NoReturn:
    """The console script: `hilo-nas run +search=cpu_latency` is `python -m search.run +search=cpu_latency`."""
    program, *arguments = sys.argv
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = arguments and arguments[0] in ("-h", "--help")
        print(
            f"usage: hilo-nas COMMAND [overrides]; commands: {', '.join(COMMANDS)}; "
            "hilo-nas COMMAND --help lists the choices and keys of one",
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        sys.exit(0 if asked_for_help else USER_MISTAKE)
    command, *rest = arguments
    sys.argv = [program, *rest]
    main(command)


def main(command: str) -> NoReturn:
    """Compose a command's configuration from the command line, run it, and exit with its code."""
    sys.argv = [sys.argv[0], *as_typed(sys.argv[1:])]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed
    if not sys.stderr.isatty():
        os.environ.update(dict.fromkeys(PROGRESS_BARS, "1"))
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)  # asyncio would replace Python's own handler, and delay Ctrl-C
    errors: list[BaseException] = []

    def guarded(cfg: DictConfig) -> None:
        if errors:  # of a sweep (-m), which ends with its first error
            return
        try:
            _start(command, cfg)
        except BaseException as error:
            errors.append(error)  # raised below: Hydra would print its own lines first

    def composed() -> None:
        config_name = "config" if command == "run" else command
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)()
        except HydraException as error:
            if (mistake := unknown_key(str(error), config_name, sys.argv[1:])) is None:
                raise
            raise UserError(mistake) from error
        if errors:
            raise errors[0]

    sys.exit(_exit_code(composed, COMMANDS[command]))


def _start(command: str, cfg: DictConfig) -> None:
    """Import a command's module and run it."""
    if command == "run" and "address" not in cfg.engine:  # not a cluster
        from search.engine.local import start_server

        start_server()  # takes as long as the import below, on another core
    import_module(f"search.commands.{command}").main(cfg)


def unknown_key(message: str, config_name: str, overrides: Sequence[str]) -> str | None:
    """Suggest existing keys for a mistyped one; None if Hydra's message is about something else, or has a better hint."""
    if "Did you mean" in message or (match := re.match(r"Could not override '([^']+)'", message)) is None:
        return None
    typed = match[1]
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    groups = [
        override
        for key, override in zip(keys, overrides, strict=True)
        if key != typed and "." not in key and not key.startswith("-")
    ]
    with contextlib.suppress(HydraException), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_container(hydra.compose(config_name, groups), resolve=False)
        near = difflib.get_close_matches(typed, keys_of(cfg), 3, cutoff=0.75)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{typed}: there is no such key with these choices{meant or ';'} --help lists all"
    return None  # another one is wrong too: Hydra's message stays


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """The keys of a configuration as plain data and of what is in it, dotted; none of anything else."""
    if not isinstance(node, dict):
        return []
    public = {f"{prefix}{key}": value for key, value in node.items() if not str(key).startswith("_")}
    return [name for key, value in public.items() for name in (key, *keys_of(value, f"{key}."))]


def build(node: Any, **kwargs: Any) -> Any:
    """Instantiate a configuration node.

    Raises:
        UserError: if its constructor refuses its arguments; with the message of that.
        Exception: whatever else its constructor raises.
    """
    try:
        return hydra.utils.instantiate(node, **kwargs)
    except InstantiationException as error:
        failure = error
    cause = failure.__cause__
    if cause is None or isinstance(cause, TypeError | ValueError):
        raise UserError(one_line(cause or failure).removeprefix("ValueError: ")) from failure
    raise cause  # out here: raised above, it would be an effect of its own effect


def construct(factory: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a constructor or a check. Raises: UserError with its message about the arguments."""
    try:
        return factory(**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(one_line(error).removeprefix("ValueError: ")) from error


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain data, with every reference resolved."""
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def listed(value: Any) -> list[str]:
    """Names from the command line: none, one or a list."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, ListConfig) else [str(value)]


def target_of(latency: Any, **network: int) -> Callable[[], Any]:
    """A factory of a configuration's latency target that can be sent to another process.

    network: img_size, in_chans and num_classes of what is measured.
    """
    settings = plain(latency)
    for key in ("budget_ms", "budget_on", "devices", "objectives", "input_size"):  # of the search, and of search.measure
        settings.pop(key, None)
    return partial(build(settings), **network)


def set_up_logging(console: Console, log_file: Path | None) -> None:
    """Log to the console, as plain lines if it is not a terminal, and to a file."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [handler]
    if log_file is not None:
        to_file = logging.FileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(to_file)
    logging.raiseExceptions = False  # a full disk is reported once, by what needs it
    logging.basicConfig(handlers=handlers, force=True)
    logging.getLogger("search").setLevel(logging.DEBUG)


def _terminate(*args: object) -> NoReturn:
    raise Terminated


def _interrupt(*args: object) -> NoReturn:
    raise KeyboardInterrupt


def _exit_code(command: Callable[[], object], after_stop: str) -> int:
    try:
        command()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return _print_error(error, str(error), USER_MISTAKE)
    except SearchStopped as error:
        return _print_error(error, str(error), STOPPED)
    except KeyboardInterrupt as error:
        print(after_stop, file=sys.stderr)
        return TERMINATED if any(isinstance(cause, Terminated) for cause in causes(error)) else INTERRUPTED
    except Exception as error:
        if (reason := _reason(error)) is None:
            log.debug("a bug", exc_info=True)
            raise
        comfort = "what is finished is kept: " if after_stop == CONTINUE else ""
        return _print_error(error, f"{reason}; {comfort}fix this and run the command again", STOPPED)
    return 0


def _reason(error: Exception) -> str | None:
    """Why a disk or a database could not be used; None if an error is about neither."""
    if isinstance(error, OSError):
        return one_line(error) if error.errno in RESOURCE_ERRORS else None
    if not any(type(cause).__module__.startswith(("sqlalchemy.", "sqlite3")) for cause in causes(error)):
        return None
    from search.study.storage import driver_error, is_fault_of_database

    return one_line(driver_error(error)) if is_fault_of_database(error) else None


def _print_error(error: Exception, message: str, code: int) -> int:
    """Print one line; the traceback goes to the log."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    log.debug("the command ends with exit code %d", code, exc_info=error)
    return code
