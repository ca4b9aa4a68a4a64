"""The `regrade` command. One file per subcommand; heavy imports wait until a subcommand runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from leaderboard.board.visible import visible
from suite.cli import attack, board, doctor, eval_, import_, ls, report, run, stopping, sweep, validate
from suite.cli.stopping import Stopped, stopped_by_signals


def _print_version(requested: bool) -> None:
    if requested:
        from suite.storage.provenance import suite_version

        print(f"regrade {suite_version()}")
        raise typer.Exit


app = typer.Typer(
    name="regrade",
    help="Once a language model has forgotten, does it stay forgotten, and which optimizer makes it stay?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _regrade(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


app.command("run")(run.run)
app.command("sweep")(sweep.sweep)
app.command("eval")(eval_.eval_)
app.command("attack")(attack.attack)
app.command("report")(report.report)
app.add_typer(board.app, name="board")
app.add_typer(import_.app, name="import")
app.command("ls")(ls.ls)
app.command("validate")(validate.validate)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command.

    Exit codes: 0 done, 1 it ran and failed, 2 the request was wrong or cannot be carried out here, 128 + N signal N
    stopped it (130 after Ctrl-C). An error of ours says by its kind which of 1 and 2 it is.
    """
    for name in ("stdout", "stderr"):  # None where it was closed before the start
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, it stays open
    with stopped_by_signals():
        try:
            try:
                app()
            finally:
                sys.stdout.flush()
        except Stopped as stopped:
            raise _ended_by_signal(str(stopped)) from None
        except (KeyboardInterrupt, SystemExit) as end:
            if stopping.exit_code() is None:
                raise
            raise _ended_by_signal(f"{stopping.word()}. Nothing that was finished is lost") from end
        except Exception as error:
            raise _ended_by_error(error) from None


def _ended_by_signal(message: str) -> SystemExit:
    print(f"regrade: {message}", file=sys.stderr)
    return SystemExit(stopping.exit_code())


def _ended_by_error(error: Exception) -> SystemExit:
    """Print an error whose message is enough. Another one is a bug of ours: it is raised again, with its traceback."""
    from tasks.errors import RegradeError

    code = error.exit_code if isinstance(error, RegradeError) else None
    message = str(error)
    if isinstance(error, OSError) and not _stdout_works():
        code = RegradeError.exit_code
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `head` does
            return SystemExit(code)
        message = f"standard output: not written, {error.strerror}. What to do: make room and run again"
    if code is None:
        raise error
    message = "\n".join([message, *getattr(error, "__notes__", ())])
    print(visible(f"regrade: {message}", keep="\n"), file=sys.stderr)
    return SystemExit(code)


def _stdout_works() -> bool:
    """Whether standard output can be written to. Otherwise it is sent to the null device, because Python would flush
    it again at exit and report an error."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
