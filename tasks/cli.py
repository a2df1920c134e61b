"""`pyramid VERB ...`: one program, one file a verb. Read first here, then `reconstruct.py` for a verb in full.

Exit codes: 0 done; 2 the user can mend it (one line on stderr: what was expected, what came); 1 our fault (the
traceback with --debug). torch is imported inside the verbs, so that `pyramid --help` answers at once.
"""

from __future__ import annotations

import sys
import traceback

import typer

from tasks import (
    ask,
    bench,
    caption,
    data,
    doctor,
    edit,
    evaluate,
    generate,
    incontext,
    info,
    quickstart,
    reconstruct,
    search,
    storyboard,
    tokenize,
    train,
    words,
)
from tasks.console import DONE, OUR_FAULT, USER_CAN_MEND, one_line, user_can_mend

app = typer.Typer(
    name="pyramid",
    help="Video as a semantic pyramid of tokens: words on top, bits below.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train.app, name="train")
app.command()(reconstruct.reconstruct)
app.command()(tokenize.tokenize)
app.command()(caption.caption)
app.command()(ask.ask)
app.command()(ask.classify)
app.command()(incontext.incontext)
app.command()(search.index)
app.command()(search.search)
app.command()(words.words)
app.command()(generate.generate)
app.command()(edit.edit)
app.command()(storyboard.storyboard)
app.command()(info.info)
app.command()(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(bench.app, name="bench")
app.command()(quickstart.quickstart)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure.")) -> None:
    """Options before the verb; --debug is taken anywhere (see `main`)."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    verb = next((arg for arg in args if not arg.startswith("-")), "")
    who = f"pyramid {verb}".strip()
    try:
        return app(args=args, prog_name="pyramid", standalone_mode=False) or DONE
    except (KeyboardInterrupt, typer.Abort):
        print(f"{who}: interrupted", file=sys.stderr)
        return 130
    except SystemExit:
        if "--help" not in args:
            raise
        return DONE  # typer exits so where the reader of the help went away: `pyramid --help | head`
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error, who)


def _report(error: Exception, who: str) -> int:
    show_usage = getattr(error, "format_message", None)  # typer's own: a wrong option, a missing argument
    if show_usage is not None:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(show_usage(), file=sys.stderr)
        else:
            context = getattr(error, "ctx", None)
            page = context.command_path if context is not None else who
            print(f"{who}: {' '.join(show_usage().split())} (see {page} --help)", file=sys.stderr)
        return USER_CAN_MEND
    if user_can_mend(error):
        print(f"{who}: {one_line(error)}", file=sys.stderr)
        return USER_CAN_MEND
    kind = type(error).__name__
    print(f"{who}: our fault: {kind}: {one_line(error)}. Please report it, with what --debug prints", file=sys.stderr)
    return OUR_FAULT


if __name__ == "__main__":
    sys.exit(main())
