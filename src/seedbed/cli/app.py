"""The command line from outside: what is asked is run, and whatever goes wrong is one paragraph and an exit code."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from seedbed import __version__
from seedbed.core.errors import ConfigError, InterruptedRunError, SeedbedError, is_out_of_memory
from seedbed.core.speaking import LEFT, patient_streams

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: option names are never cut, however narrow the terminal
    help="Pre-train language models on less data and less compute, and say honestly whether it worked.",
)

nca = typer.Typer(no_args_is_help=True, help="Look at neural cellular automata, generate rows of them, check them.")

app.add_typer(nca, name="nca")

tokenizer = typer.Typer(no_args_is_help=True, help="Train a tokenizer on your text; hold one against your text.")

app.add_typer(tokenizer, name="tokenizer")


class _State:
    debug = False
    works = False  # whether the command leaves something behind


WORKS = {"run", "compare", "tune", "map", "prepare", "column", "order", "train", "resume", "track", "export", "report", "pack"}

WORKS |= {"show", "generate"}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"seedbed {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    _State.debug = debug
    _State.works = any(word in WORKS for word in sys.argv[1:3])


def entry() -> None:
    """Run the command line; errors are one paragraph on standard error, with the exit code of their kind.

    Where standard output fails on the way, a command goes on with its work; a reader that left (`| head`) is no fault, anything
    else ends in exit code 1.
    """
    out, err = patient_streams()
    code = _ended()
    out.flush()
    if out.failed is not None and out.failed.errno not in LEFT:
        _complain(
            f"could not write to standard output: {out.failed.strerror}; what the command does beside is done, its words are "
            "lost: mend that and ask again"
        )
        code = code or 1
    elif out.failed is not None and _State.works:
        _complain("nobody read on, and the command went on to its end all the same")
    err.flush()
    sys.exit(code)


def _ended() -> int:
    """Run the command and return its exit code."""
    code: Any
    try:
        for word in sys.argv[1:]:
            whole_text("an argument", word)
        code = app(standalone_mode=False)
        if code == InterruptedRunError.exit_code:  # the parser's own way of ending at Ctrl-C, which is silent
            _complain("interrupted; nothing more was written")
    except SeedbedError as e:
        _complain(str(e))
        code = e.exit_code
    except typer.TyperException as e:  # usage errors of the parser
        said = e.format_message() if hasattr(e, "format_message") else str(e)
        _complain(f"{said.rstrip('.')}; `seedbed COMMAND --help` shows what is allowed".replace("\n", " "))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing more was written")
        code = 130
    except OSError as e:
        _complain(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}; mend that and try again")
        code = 1
    except Exception as e:
        if is_out_of_memory(e):
            _complain("memory is used up; ask for less at a time, or take a larger machine (--dry-run tells what a run takes)")
            return 1
        # a fault of ours: still one paragraph, the traceback on request
        _complain(f"internal error, {type(e).__name__}: {e}; please report it with the output of `seedbed --debug ...`")
        code = 1
    return code or 0


def whole_text(what: str, text: str) -> None:
    """Raise ConfigError for what is not UTF-8, or unknown to the locale, in anything but the name of a file that is there."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if os.path.lexists(text):
            return
        raw = os.fsencode(text)
    else:
        return
    try:
        said = raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{what} is not UTF-8: {raw!r}; give it in UTF-8") from None
    raise ConfigError(
        f"{what} has characters that the locale's encoding, {sys.getfilesystemencoding()}, does not know: {said!r}; set "
        "PYTHONUTF8=1, or a locale of UTF-8, and run it again"
    )


def _complain(message: str) -> None:
    if _State.debug:
        traceback.print_exc()
    print(f"seedbed: {message}", file=sys.stderr)
