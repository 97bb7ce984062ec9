"""
The command line: arguments → configuration → agent → text and exit code. The only printer.

stdout is data, stderr is talk. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from trioft import __version__
from trioft.cli import delivered, upkeep
from trioft.cli.arguments import (
    ENVIRONMENT,
    EXIT_STATUS,
    PLAIN_STATUS,
    SAFE_STATUS,
    VERIFY_STATUS,
    AcceptNewDestination,
    AcceptNewSource,
    Action,
    Bwlimit,
    Checksum,
    ConfigFile,
    Destination,
    Exclude,
    Feed,
    Force,
    GrowingMode,
    IfExists,
    Include,
    JobName,
    JobNames,
    Json,
    MinFree,
    NoProgress,
    OfSystem,
    OfUser,
    OnSuccess,
    Quiet,
    ServiceName,
    Settle,
    Source,
    StateDir,
    Transfers,
    Verbose,
    Verify,
    WhatToDo,
    load,
    load_run,
    reader,
)
from trioft.cli.init import become_init
from trioft.core.errors import ConfigError, Side, TrioftError, UnusableError

app = typer.Typer(
    name="trioft",
    help="Gets every file of a folder to a network destination: complete, verified, and as early as possible.",
    epilog=ENVIRONMENT + EXIT_STATUS,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(
    help="Check, show, or begin a configuration file. Not in it: a destination that has moved to another filesystem on"
    " purpose is accepted with `trioft sync` or `trioft watch --accept-new-destination`, once.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trioft {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --- commands ---------------------------------------------------------------------------------------------------------


@app.command(epilog=ENVIRONMENT + EXIT_STATUS)
def sync(
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    include: Include = None,
    exclude: Exclude = None,
    transfers: Transfers = None,
    verify: Verify = None,
    checksum: Checksum = None,
    growing: GrowingMode = None,
    settle: Settle = None,
    on_success: OnSuccess = None,
    if_exists: IfExists = None,
    bwlimit: Bwlimit = None,
    min_free: MinFree = None,
    feed: Feed = None,
    job: JobNames = None,
    state_dir: StateDir = None,
    accept_new_destination: AcceptNewDestination = False,
    accept_new_source: AcceptNewSource = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be copied; write nothing.")] = False,
) -> None:
    """
    Transfer what is missing or different at DEST, then exit. Nothing is ever deleted at DEST.

    Example:  trioft sync /data/raw /mnt/nas/raw --exclude '*.tmp'
    """
    settings, read = load_run(locals()), reader(locals())
    from trioft.cli import run as console

    raise typer.Exit(
        console.run_sync(
            settings,
            read,
            accept=_accepted(accept_new_source, accept_new_destination),
            as_json=json,
            quiet=quiet,
            verbose=verbose,
            progress=not no_progress,
            dry_run=dry_run,
        )
    )


@app.command(epilog=ENVIRONMENT + EXIT_STATUS)
def watch(
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    include: Include = None,
    exclude: Exclude = None,
    transfers: Transfers = None,
    verify: Verify = None,
    growing: GrowingMode = None,
    settle: Settle = None,
    on_success: OnSuccess = None,
    if_exists: IfExists = None,
    bwlimit: Bwlimit = None,
    min_free: MinFree = None,
    feed: Feed = None,
    job: JobNames = None,
    state_dir: StateDir = None,
    accept_new_destination: AcceptNewDestination = False,
    accept_new_source: AcceptNewSource = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """
    Transfer every file that is there or appears, until stopped by a signal.

    Example:  trioft watch /ingest /mnt/nas/ingest --on-success archive:/ingest-done
    """
    settings, read = load_run(locals()), reader(locals())
    from trioft.cli import run as console

    raise typer.Exit(
        console.run_watch(
            settings,
            read,
            accept=_accepted(accept_new_source, accept_new_destination),
            as_json=json,
            quiet=quiet,
            verbose=verbose,
            progress=not no_progress,
        )
    )


@app.command(epilog=PLAIN_STATUS)
def status(
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="Where the agent's feed is. Default: those of the state folder."),
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each agent, and no more.")] = False,
) -> None:
    """
    Show what a running agent is doing; it has been started with --feed. TRIOFT_FEED_TOKEN is its token, if it has one.

    Example:  trioft status http://ingest-1:8080/
    """
    settings = load({"config": config, "state_dir": state_dir}, ends=False)
    from trioft.cli.pairs import state_dir_of
    from trioft.cli.status import run_status

    raise typer.Exit(run_status(url, state_dir_of(settings), as_json=json))


app.command(epilog=PLAIN_STATUS)(delivered.history)
app.command(epilog=PLAIN_STATUS)(delivered.explain)
app.command(epilog=SAFE_STATUS)(delivered.safe)
app.command(epilog=VERIFY_STATUS)(delivered.verify)


@app.command()
def doctor(
    source: Source = None,
    dest: Destination = None,
    config: ConfigFile = None,
    job: JobName = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each thing that was looked at.")] = False,
) -> None:
    """
    Measure what both ends can do; say what it means, and what to set. Takes half a minute, and leaves nothing behind.

    Example:  trioft doctor /ingest /mnt/nas/ingest

    EXIT STATUS:  0 all is well.  1 something is a problem.  2 wrong usage or configuration.  3 source or destination
    unusable.  130, 143 interrupted.
    """
    settings = load({"source": source, "dest": dest, "config": config, "job": job})
    if settings.jobs:
        raise ConfigError([f"there are several jobs: {', '.join(settings.jobs)}"], hint="name one with --job")
    from trioft.cli.doctor import run_doctor
    from trioft.cli.output import print_all
    from trioft.cli.pairs import state_dir_of

    raise typer.Exit(run_doctor(settings, state_dir_of(settings), lambda line: print_all([line]), as_json=json))


app.command(epilog=upkeep.CLEAN_STATUS)(upkeep.clean)


@app.command(epilog=PLAIN_STATUS, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def service(
    context: typer.Context,
    action: WhatToDo,
    user: OfUser = False,
    system: OfSystem = False,
    name: ServiceName = "trioft",
    force: Force = False,
) -> None:
    """
    Run `trioft watch` as a service of systemd, or launchd on macOS. SOURCE, DEST and the options are those of watch.

    Example:  trioft service install /ingest /mnt/nas/ingest --on-success archive:/ingest-done
    """
    from trioft.cli import service as services

    if user and system:
        raise ConfigError(["--user and --system exclude each other"])
    system = system or (not user and os.geteuid() == 0)
    if action == Action.UNINSTALL:
        if context.args:
            raise ConfigError([f"uninstall needs no {context.args[0]}"], hint="a service is found by its --name")
        services.uninstall(name, typer.echo, system=system, force=force)
        return
    watch = typer.main.get_command(app).commands["watch"]  # type: ignore[attr-defined]
    arguments = services.absolute(watch.make_context("trioft watch", context.args).params)
    settings = load(arguments)
    services.check(name, settings)
    made = services.Service(
        name=name,
        system=system,
        words=services.words_of(watch.params, arguments),
        config=settings,
        program=services.how_to_start(),
    )
    if action == Action.SHOW:
        typer.echo(services.text_of(made), nl=False)
    else:
        services.install(made, typer.echo, force=force)


@config_app.command(epilog=PLAIN_STATUS)
def check(config: ConfigFile = None) -> None:
    """Read the configuration file and report every problem at once."""
    if config is None:
        raise ConfigError(["no configuration file given"], hint="name one with -c FILE or TRIOFT_CONFIG")
    checked = load({"config": config}, ends=False)
    jobs = list(checked.jobs.values()) or [checked]
    if any(job.copy.on_success.folder is not None for job in jobs):
        from trioft.cli.pairs import check_archives

        check_archives(jobs)
    typer.echo(f"{config}: ok")


@config_app.command(epilog=PLAIN_STATUS)
def show(config: ConfigFile = None) -> None:
    """Print the configuration in effect: the file's, and the defaults for the rest."""
    from trioft.config.file import dump

    typer.echo(dump(load({"config": config}, ends=False)), nl=False)


@config_app.command(epilog=PLAIN_STATUS)
def init(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="The file to write. Default: stdout.")] = None,
) -> None:
    """Write a configuration file with every option, its default and its reason, all commented out."""
    from trioft.config.file import example

    if file is None:
        typer.echo(example(), nl=False)
        return
    try:
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(example())
    except FileExistsError:
        raise ConfigError([f"{file} exists already"], hint="choose another name") from None
    except OSError as error:
        raise ConfigError([f"cannot write {file}: {error.strerror}"]) from None


def _accepted(source: bool, destination: bool) -> list[Side]:
    return [Side.SOURCE] * source + [Side.DESTINATION] * destination


def main() -> NoReturn:
    """Run the command line; every expected error becomes a sentence and an exit code here."""
    become_init()
    _prepare_standard_streams()
    # Some programs leave it ignored to those that they start: then nobody is told how a child has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        app()
    except TrioftError as error:
        tell(error)
        code = error.exit_code
    except KeyboardInterrupt:  # before there was anything to interrupt in an orderly way
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; that is no reason for a traceback when Python flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.filename is not None:  # it is about a file, not about what is said
            raise
        with contextlib.suppress(OSError):  # what is buffered must not fail again when Python flushes it at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        tell(UnusableError(f"cannot write to stdout: {error.strerror}"))
        code = UnusableError.exit_code
    sys.exit(code)


def _prepare_standard_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: no other file may get its number, as children would write into that
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has none where they were closed.
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names have characters that not every terminal has


def tell(error: TrioftError) -> None:
    """Print an error and its hint."""
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    with contextlib.suppress(OSError):  # nobody can be told: the exit code says it
        for problem in problems:
            typer.echo(f"trioft: error: {problem}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
