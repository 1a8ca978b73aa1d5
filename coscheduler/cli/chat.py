"""`coscheduler chat`: a conversation in the terminal, or one question and its answer."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coscheduler.cli import EXIT_INTERRUPTED, say
from coscheduler.cli.options import Json, PriorityClass, examples
from coscheduler.errors import CoschedulerError, InvalidInput

EPILOG = examples(
    "coscheduler chat",
    'coscheduler chat "What is a ledger?" --max-tokens 200',
    'coscheduler chat "List three colours." --schema colours.schema.json --json',
    "cat report.txt | coscheduler chat - --system 'Answer in one sentence.'",
)
PROMPT = "> "


def chat(
    context: typer.Context,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help='Ask once; "-" reads it from standard input.'),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="How the model is to behave.")] = "",
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token each time. (default: 0.7)")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="(default: 0.95)")] = None,
    seed: Annotated[int, typer.Option(help="Decides the draws.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut the answer there. (default: up to 1024)")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON schema that the answer obeys.")
    ] = None,
    session: Annotated[
        str,
        typer.Option(metavar="NAME", help="What is read under this name need not be read again."),
    ] = "",
    refuse: Annotated[
        bool, typer.Option("--refuse", help="Refuse what does not fit, drop no old turns.")
    ] = False,
    priority: Annotated[
        PriorityClass, typer.Option(help="The class of the request.")
    ] = PriorityClass.INTERACTIVE,
    as_json: Json = False,
) -> None:
    """Talk to the language model.

    Without a question it is a conversation: one line each, "/new" begins another one, an empty
    line, "/quit" or Ctrl-D ends it. Ctrl-C stops an answer. The oldest turns are left out when the
    conversation no longer fits the model's context, and it says so.
    """
    import secrets

    from coscheduler.client import Client
    from coscheduler.client.chat import Conversation
    from coscheduler.core.model import Priority

    options: dict[str, Any] = {
        "seed": seed,
        "stop": stop or [],
        "session": session or ("" if question else f"cli-{secrets.token_hex(8)}"),
        "overflow": "refuse" if refuse else "drop",
        "schema_text": _text_of(schema) if schema else "",
    }
    given = {"temperature": temperature, "top_p": top_p, "tokens_max": max_tokens}
    options |= {name: value for name, value in given.items() if value is not None}
    with Client(context.obj) as client:
        of_class = Priority[priority.name]

        def begin() -> Conversation:
            return Conversation(client, system=system, priority=of_class, **options)

        if question is not None:
            text = sys.stdin.read() if question == "-" else question
            _ask_once(begin(), text, as_json)
        elif as_json:
            raise InvalidInput("QUESTION_MISSING", "--json goes with one question: give it")
        else:
            _converse(begin)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("SCHEMA_UNREADABLE", f"cannot read {path}: {error}", path=path) from None


def _ask_once(conversation: Any, text: str, as_json: bool) -> None:
    """One answer; Ctrl-C ends it. With `as_json` one object with text and numbers."""
    try:
        words, done = _answer(conversation, text, is_shown=not as_json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        say.print_json({"text": words, **(asdict(done) if done else {})})


def _converse(begin: Any) -> None:
    """Questions and answers until the input ends."""
    conversation = begin()
    while (line := _read_line()) not in (None, "", "/quit"):
        if line == "/new":
            conversation = begin()
            continue
        try:
            _answer(conversation, line, is_shown=True)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except CoschedulerError as error:
            say.explain(error)


def _read_line() -> str | None:
    """The next line; None at the end of the input."""
    if sys.stdin.isatty():
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    return line.strip() if line else None


def _answer(conversation: Any, text: str, *, is_shown: bool) -> tuple[str, Any]:
    """Write the answer as it comes; its text and how it ended."""
    from coscheduler.chat import ChatDone, ChatText, ChatWaiting

    words: list[str] = []
    for event in conversation.say(text):
        match event:
            case ChatWaiting(reason) if is_shown:
                say.notice(f"waiting for {reason}")
            case ChatText(piece):
                words.append(piece)
                if is_shown:
                    _write(piece)
            case ChatDone():
                if is_shown:
                    sys.stdout.write("\n")
                    _note(event)
                return "".join(words), event
    return "".join(words), None


def _write(piece: str) -> None:
    """Text of a model: nothing in it may steer the terminal."""
    safe = "".join(char if char in "\n\t" else say.printable(char) for char in piece)
    sys.stdout.write(safe)
    sys.stdout.flush()


def _note(done: Any) -> None:
    """What the reader is to know beside the text."""
    for note in done.notes:
        say.notice(note)
    if done.finish == "length":
        say.notice(f"cut after {done.completion_tokens} tokens")
    if sys.stderr.isatty():
        kept = f", {done.reused_tokens} of them kept" if done.reused_tokens else ""
        say.notice(
            f"[first word after {say.duration(done.first_token_ms)}: waiting "
            f"{say.duration(done.wait_ms)}, loading {say.duration(done.load_ms)}, reading "
            f"{say.duration(done.prefill_ms)}; {done.prompt_tokens} tokens read{kept}, "
            f"{done.completion_tokens} written]"
        )
