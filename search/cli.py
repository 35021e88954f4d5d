"""What every entry point does around its work: Hydra, logging, and errors as one line with an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from search.errors import SearchStopped, UserError, driver_error, one_line

USER_MISTAKE = 2
STORAGE_MODULES = ("sqlalchemy.", "sqlite3", "optuna.exceptions")
INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


def conf_dir() -> Path:
    """The configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def main(task: Callable[[DictConfig], None], config_name: str, after_stop: str = "stopped") -> NoReturn:
    """Compose the configuration from the command line, run the task, and exit with its code.

    after_stop: what to say after Ctrl-C or SIGTERM.
    """
    sys.argv = [quoted(argument) for argument in sys.argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed
    signal.signal(signal.SIGTERM, _terminate)
    outcome: list[BaseException] = []

    def guarded(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except BaseException as error:
            outcome.append(error)  # raised below: Hydra would print its own lines first

    def command() -> None:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)()
        if outcome:
            raise outcome[0]

    sys.exit(_exit_code(command, after_stop))


def quoted(argument: str) -> str:
    """An override such as pick=latency<=5ms, whose signs Hydra's grammar takes in quotes alone."""
    key, _, value = argument.partition("=")
    return f"{key}='{value}'" if set(value) & set("<>") and value[0] not in "'\"" else argument


def build(node: Any, **kwargs: Any) -> Any:
    """Instantiate a configuration node. Raises: UserError with what its constructor says."""
    try:
        return hydra.utils.instantiate(node, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if error.__cause__ is None or isinstance(error.__cause__, TypeError | ValueError):
            raise UserError(one_line(error.__cause__ or error).removeprefix("ValueError: ")) from error
        raise error.__cause__ from error


def construct(factory: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a constructor or a check. Raises: UserError with what it says of its arguments."""
    try:
        return factory(**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(one_line(error).removeprefix("ValueError: ")) from error


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain data, every reference resolved."""
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def target_of(latency: Any, **network: int) -> Callable[[], Any]:
    """What makes a configuration's latency target, in whichever process.

    network: img_size, in_chans and num_classes of what is measured.
    """
    settings = plain(latency)
    for key in ("budget_ms", "devices", "objectives", "input_size"):  # of the search, and of search.measure
        settings.pop(key, None)
    return partial(build(settings), **network)


def set_up_logging(console: Console, log_file: Path | None) -> None:
    """Log to the console, as plain lines if it is no terminal, and to a file."""
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


def _exit_code(command: Callable[[], object], after_stop: str) -> int:
    try:
        command()
    except UserError as error:
        return _say(error, USER_MISTAKE)
    except (HydraException, OmegaConfBaseException) as error:
        return _say(error, USER_MISTAKE)
    except SearchStopped as error:
        return _say(error, 1)
    except KeyboardInterrupt as error:
        print(after_stop, file=sys.stderr)
        return TERMINATED if _was_terminated(error) else INTERRUPTED
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.startswith(STORAGE_MODULES)):
            raise  # a bug: its traceback is wanted
        return _say(
            SearchStopped(f"{one_line(driver_error(error))}; what was finished is kept: mend that and repeat the command"), 1
        )
    return 0


def _was_terminated(error: BaseException | None) -> bool:
    """Lightning and the coordinator raise anew: look through to the first cause."""
    while error is not None:
        if isinstance(error, Terminated):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
