"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Each command is in a module of its own, which is imported when the command runs: so the list of
commands is there at once, and a command pays only for what it needs.
"""

from __future__ import annotations

import errno
import gc as garbage_collector
import importlib
import io
import os
import signal
import sys
from types import FrameType

import click
from click.shell_completion import add_completion_class

from mergeops.cli.bash_words import BashWords
from mergeops.errors import AwayError, MergeError, MergeopsError
from mergeops.version import __version__

COMMANDS = {
    "adopt": "Find the mergeable checkpoints of an experiment, whatever became of the runs.",
    "approve": "Make NAME@challenger, which another user proposed, the champion.",
    "average": "Average checkpoints of Megatron-LM, Megatron-Bridge or NeMo into OUT, which they "
    "load.",
    "compare": "Leaderboard of the parents and merges of experiments, with paired differences.",
    "controls": "What each source of a merge contributes: the merge without it, and with noise "
    "for it.",
    "convert": "Write the recipe of a mergekit YAML to OUT, or print it.",
    "doctor": "Check versions, devices, the tracking server and disk space, and say what to fix.",
    "extract": "Make a LoRA adapter OUT of the full fine-tune TUNED of BASE, and say what it "
    "leaves out.",
    "gc": "Delete merges and interrupted work in output.dir that nothing in MLflow needs any more.",
    "history": "Every promotion, refusal, proposal, rollback and use of the confirm part of NAME.",
    "hooks": "Webhooks of MLflow's registry: who is told when an alias moves.",
    "init": "Write a config directory: experiment, registered model, tasks, and a first recipe.",
    "inspect": "Will these merge, and how do their task vectors interfere? Nothing is merged or "
    "logged.",
    "jobs": "The jobs of the service: list, show, logs, cancel, retry.",
    "lineage": "The family tree of a model, back to its training runs and bases.",
    "merge": "Merge what RECIPE_FILE says into the directory OUT; nothing is scored or tracked.",
    "methods": "List the merge methods, or explain one with its parameters and paper.",
    "moe": "Make the dense models of RECIPE the experts of one, OUT, that sends each token to a "
    "few.",
    "open": "Open the page of MLflow: the leaderboard, a run, a registered model or one of its "
    "versions.",
    "promote": "Move NAME@champion to a merge, if it is better on the confirm part.",
    "recover": "Put together the weights that a sharded training left in DIR, as a Hugging Face "
    "directory OUT.",
    "reject": "Close the proposal of NAME@challenger; the champion stays.",
    "rollback": "Move NAME@champion back to NAME@previous.",
    "run": "One tracked trial: find the sources, merge, score merge and parents, log, register.",
    "search": "Many trials, the best chosen on the dev part: strategy=greedy_soup, optuna, ...",
    "serve": "Serve the merge service here: page, API, queue, and a worker.",
    "statistics": "Activations of models, measured by a file of prompts: make, list.",
    "strategies": "List the strategies of a search, or explain one with its parameters.",
    "submit": "Queue COMMAND with its arguments as a job of the service.",
    "sync": "Log trials that were kept while the server was away; nothing is merged or "
    "scored again.",
    "transplant": "Write MODEL with the vocabulary and tokenizer of DONOR into OUT.",
    "verify": "Rehash a merged checkpoint and name every file that differs from its manifest.",
    "watch": "Continuous merging: every training run that ends is tried; what is better is "
    "proposed.",
    "worker": "Work on the jobs of a database until SIGTERM.",
}
"""Command -> the first sentence of its help."""
MODULES = {
    "convert": "merge",
    "search": "run",
    "submit": "jobs",
    "worker": "serve",
} | dict.fromkeys(("approve", "controls", "history", "reject", "rollback"), "promote")
"""Command -> its module here, where that is not called like it."""
MOST_SHOWN = 4000
"""Characters of a message; a file may hold names of any length."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mergeops.cli.{MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [
            (name, click.Command(name, help=sentence).get_short_help_str(limit))
            for name, sentence in COMMANDS.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergeops")
def cli() -> None:
    """Merge the fine-tuning runs you already paid for into a better model.

    Recipes are Hydra configs: FILE.yaml, recipe=NAME, method=ties, KEY=VALUE, +KEY=VALUE, ~KEY.
    """


add_completion_class(BashWords)


class _Stopped(KeyboardInterrupt):
    """SIGTERM, by which schedulers and containers end a process: as Ctrl-C to all that clean up."""


def _stop(number: int, frame: FrameType | None) -> None:
    # A second one does not wait.
    signal.signal(number, signal.SIG_DFL)
    raise _Stopped


def main() -> None:
    """Entry point: every expected error is one line on stderr and the exit code of its class."""
    # Libraries make half a million objects that stay. Python would look through them for garbage
    # many times while they load, and once more before it ends: half a second of a small merge.
    garbage_collector.set_threshold(100_000, 20, 20)
    # A name may hold what the terminal's encoding lacks, or half a UTF-16 pair.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except AwayError as error:
        # A service begins such a job again by itself, and asks to be told by a code of its own.
        _fail(str(error), int(os.environ.get("MERGEOPS_AWAY_EXIT_CODE") or error.exit_code))
    except MergeopsError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # click raises Abort from the other.
        is_stopped = isinstance(error.__cause__ or error, _Stopped)
        verb, number = ("stopped", signal.SIGTERM) if is_stopped else ("interrupted", signal.SIGINT)
        _fail(f"{verb}; run the same command again to go on", 128 + number)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is not None:
            # Most are caught where they arise, and say what to do; a name that is too long, a loop
            # of links or a directory without access may come up wherever a path is touched.
            shown = str(error.filename)
            shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
            _fail(f"{shown}: {error.strerror}", MergeopsError.exit_code)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        why = f"what is printed cannot be written: {error.strerror}; the work before it is done"
        _fail(why, MergeError.exit_code)
    finally:
        # What is left is the interpreter's own end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        garbage_collector.freeze()


def _as_line(message: str) -> str:
    """The message without line breaks and other signs that a terminal acts on, and not endless."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    return (
        text
        if len(text) <= MOST_SHOWN
        else f"{text[: MOST_SHOWN // 2]}...{text[-MOST_SHOWN // 2 :]}"
    )


def _fail(message: str, code: int) -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    click.echo(f"mergeops: error: {_as_line(message)}", err=True)
    sys.exit(code)
