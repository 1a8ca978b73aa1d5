"""The commands, their options and their help. What they do is in the modules beside this one."""

import asyncio
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coscheduler import __version__
from coscheduler.cli import EXIT_FAILED, EXIT_INTERRUPTED, chat
from coscheduler.cli.gpu import gpu_app
from coscheduler.cli.options import ConfigOfCall, Json, PriorityClass, examples
from coscheduler.cli.separate import separate
from coscheduler.cli.transcribe import Format, chosen, transcribe
from coscheduler.core.model import EngineName

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Pull a sound out of recordings, write down who said what, make sense of it: three models "
    "on one device, whose memory a daemon shares out.",
    epilog=examples(
        "coscheduler run talk.flac --out results --analyze summary", "coscheduler jobs list"
    ),
)
jobs_app = typer.Typer(no_args_is_help=True, help="List, show, watch, cancel and delete jobs.")
app.add_typer(jobs_app, name="jobs")
models_app = typer.Typer(no_args_is_help=True, help="List, fetch and check model files.")
app.add_typer(models_app, name="models")
app.add_typer(gpu_app, name="gpu")
transcripts_app = typer.Typer(no_args_is_help=True, help="Join transcripts of one recording.")
app.add_typer(transcripts_app, name="transcripts")


class OverflowPolicy(StrEnum):
    """What becomes of a transcript that does not fit, as `stages.Overflow`."""

    SPLIT = "split"
    FOLD = "fold"
    REFUSE = "refuse"


class PieceModeName(StrEnum):
    """How pieces become one answer, as `stages.PieceMode`."""

    MAP = "map"
    REFINE = "refine"
    TREE = "tree"


class TranscribedSound(StrEnum):
    """What of a recording is written down, as `client.requests.Transcribed`."""

    TARGET = "target"
    RESIDUAL = "residual"
    ORIGINAL = "original"


class KvType(StrEnum):
    """Element types of a KV cache, the finest first."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="As in configs/.")]
JobNames = Annotated[list[str], typer.Argument(metavar="JOB", help="jobs/ID, or only ID.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="jobs/ID, or only ID.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coscheduler {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="COSCHEDULER_SERVER",
            metavar="ADDRESS",
            help="The daemon: unix:PATH or 127.0.0.1:PORT. (default: the socket of this user)",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Options before the command."""
    context.obj = server


@app.command(
    epilog=examples(
        "coscheduler serve --config configs/cpu.toml",
        "coscheduler serve --config configs/24gb.toml --listen 127.0.0.1:7070",
    )
)
def serve(
    context: typer.Context,
    config: Annotated[Path, typer.Option(metavar="FILE", help="The config, as in configs/.")],
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="unix:PATH or 127.0.0.1:PORT; nothing else is allowed. (default: the config's)",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The store's folder. (default: the config's)")
    ] = None,
    whisper: Annotated[str | None, typer.Option(hidden=True)] = None,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C. Prints "listening on ADDRESS" when it is ready.

    Examples:
      coscheduler serve --config configs/cpu.toml

      coscheduler serve --config configs/24gb.toml --listen 127.0.0.1:7070

    """
    from coscheduler import logs
    from coscheduler.config import load, with_whisper
    from coscheduler.rpc.server import serve as run_daemon

    settings = load(config)
    if whisper is not None:
        settings = with_whisper(settings, whisper)
    if listen is not None:
        server = settings.server.model_copy(update={"listen": listen})
        settings = settings.model_copy(update={"server": server})
    if data_dir is not None:
        store = settings.store.model_copy(update={"data_dir": data_dir.resolve()})
        settings = settings.model_copy(update={"store": store})
    logs.configure()

    def ready(address: str) -> None:
        print(f"listening on {address}", flush=True)

    asyncio.run(run_daemon(settings, ready, until_stdin_closes=until_stdin_closes))


@app.command(
    epilog=examples(
        "coscheduler run talk.flac --out results",
        'coscheduler run *.wav --out results --separate "speech" --analyze summary',
        'coscheduler run talk.txt --no-transcribe --prompt "Who came?" --out results',
    )
)
def run(
    context: typer.Context,
    audio: Annotated[
        list[Path],
        typer.Argument(metavar="AUDIO", exists=True, dir_okay=False, readable=True),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go: DIR/<stem>/...")],
    separate: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Pull this sound out first.")
    ] = None,
    transcribe: Annotated[bool, typer.Option(help="Write down who said what and when.")] = True,
    transcribe_from: Annotated[
        TranscribedSound, typer.Option(help="After --separate: the sound, the rest, or the whole.")
    ] = TranscribedSound.TARGET,
    analyze: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="summary, actions, ...: see `coscheduler templates`; or a template FILE.toml.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this about the transcript.")
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=TEXT", help="A variable of the template: to=German."),
    ] = None,
    overflow: Annotated[
        OverflowPolicy, typer.Option(help="What becomes of a transcript that is too long.")
    ] = OverflowPolicy.SPLIT,
    mode: Annotated[
        PieceModeName, typer.Option(help="How pieces of a transcript become one answer.")
    ] = PieceModeName.MAP,
    tokens_max: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens of an answer. (default: the template's)"),
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Language spoken: en, de. (default: detect it)")
    ] = "",
    priority: Annotated[PriorityClass, typer.Option(help="The class of the jobs.")] = (
        PriorityClass.NORMAL
    ),
    quality_min: Annotated[
        int | None,
        typer.Option(min=0, metavar="TIER", help="The worst quality that will do; 0 is the best."),
    ] = None,
    deadline: Annotated[
        int | None,
        typer.Option(min=1, metavar="SECONDS", help="Say when it will take longer than this."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be loaded, evicted, waited for.")
    ] = False,
    config: ConfigOfCall = None,
    as_json: Json = False,
) -> None:
    """Send recordings through the models, all at once, and fetch the results.

    Ctrl-C cancels the jobs. Exit status: 0 done, 1 a job failed, 2 wrong usage, 3 no daemon.

    Examples:
      coscheduler run talk.flac --out results

      coscheduler run *.wav --out results --separate "a person speaking" --analyze summary

      coscheduler run talk.txt --no-transcribe --prompt "Who promised what?" --out results

    """
    from coscheduler.cli import dry_run as plans
    from coscheduler.cli import private, say, templates
    from coscheduler.cli import run as runs
    from coscheduler.cli.view import Watching, outcome
    from coscheduler.client import Plan, Priority

    name, analysis = templates.asked(analyze, variable or [])
    analysis |= {"overflow": overflow.value, "mode": mode.value}
    analysis |= {} if tokens_max is None else {"tokens_max": tokens_max}
    priority_class = Priority[priority.name]
    deadline_ms = None if deadline is None else time.time_ns() // 1_000_000 + 1000 * deadline
    plan = Plan(
        separate, transcribe, name, prompt, language, priority_class, analysis,
        quality_min=quality_min, deadline_ms=deadline_ms, transcribe_from=transcribe_from.value,
    )  # fmt: skip
    recordings = runs.prepare(audio, out, plan)
    if dry_run:
        with private.reachable(context.obj, config) as address:
            raise typer.Exit(plans.plan_all(address, recordings, plan, as_json))
    console = say.console(as_json=as_json)
    with private.reachable(context.obj, config) as address, Watching(console) as view:
        interrupted = asyncio.run(runs.run_all(address, recordings, plan, view))
    for recording in recordings:
        console.print(outcome(recording.metrics))
    if as_json:
        say.print_json(runs.whole(recordings))
    raise typer.Exit(runs.exit_code(recordings, interrupted))


app.command(
    epilog=examples(
        'coscheduler separate talk.mp4 --desc "a woman speaking" --out results --plot talk.png',
        'coscheduler separate street.flac --desc "a dog" --spans 6.3-7.0,-1.0-2.5 --out results',
    )
)(separate)
app.command(
    epilog=examples(
        "coscheduler transcribe talk.mp3 --language en --output_dir out",
        "coscheduler transcribe *.wav -f srt --max_line_width 42 --max_line_count 2 -o subtitles",
        "coscheduler transcribe meeting.m4a --diarize --min_speakers 2 --config configs/24gb.toml",
        "coscheduler transcribe meeting.m4a --speaker Anna=anna.wav --speaker Bert=bert.wav",
        "coscheduler transcribe talk.wav --separate 'Anna=a woman speaking' --separate 'Bert=a man "
        "speaking'",
    )
)(transcribe)
app.command(epilog=chat.EPILOG)(chat.chat)


@app.command(
    epilog=examples(
        "coscheduler plan --config configs/24gb.toml",
        'coscheduler plan --config configs/4gb.toml --budget "6 GiB" --link "12 GB/s" --json',
        "coscheduler plan --config configs/24gb.toml --plot plan.png",
    )
)
def plan(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The config, as in configs/.")],
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of the device. (default: the memory_cap)"),
    ] = None,
    link: Annotated[
        str, typer.Option(metavar="SPEED", help="From RAM to the device; PCIe 4.0 with 16 lanes.")
    ] = "24 GB/s",
    minutes: Annotated[
        int, typer.Option(min=1, max=720, metavar="N", help="Length of the recording.")
    ] = 10,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it as well: .png, or .svg. Needs matplotlib."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say for each stage who would have which bytes, what streams, and what gives way.

    Needs no card and no weights: sizes come from the models' files where they are there, else from
    the config's sections separation.shape, transcription.shape and analysis.shape. Speeds other
    than the link's are estimates for a card of the 24 GB class. Exit status: 0, 1 where a stage
    never fits, 2 for wrong usage or sizes that nobody states.
    """
    from coscheduler.cli import plan as plans

    plans.show(config, budget, link, minutes, as_json, plot)


@jobs_app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from coscheduler.cli import jobs

    jobs.show_list(context.obj, limit, as_json)


@jobs_app.command("show")
def show_job(context: typer.Context, name: JobName, as_json: Json = False) -> None:
    """Show how a job stands: its stages, their times and bytes, what it waits for."""
    from coscheduler.cli import jobs

    jobs.show_one(context.obj, name, as_json)


@jobs_app.command("watch")
def watch_job(context: typer.Context, name: JobName, as_json: Json = False) -> None:
    """Follow a job to its end. Ctrl-C ends the watching, not the job."""
    from coscheduler.cli import jobs

    try:
        succeeded = jobs.follow(context.obj, name, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(0 if succeeded else EXIT_FAILED)


@jobs_app.command("cancel")
def cancel_jobs(context: typer.Context, names: JobNames) -> None:
    """Ask jobs to end early; one that has ended stays as it is."""
    from coscheduler.cli import jobs

    jobs.cancel(context.obj, names)


@jobs_app.command("delete")
def delete_jobs(context: typer.Context, names: JobNames) -> None:
    """Delete jobs that have ended, with their results; recordings stay."""
    from coscheduler.cli import jobs

    jobs.delete(context.obj, names)


@models_app.command(
    "list",
    epilog=examples(
        "coscheduler models list --config configs/24gb.toml",
        "coscheduler models list --config my.toml --online --json",
    ),
)
def list_models(
    config: ConfigFile,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the hub for sizes, licences and gating.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models that a config needs: where they are, what is missing, size, licence, access.

    Exit status: 0 when everything is there, 1 otherwise.
    """
    from coscheduler.cli import model_files

    raise typer.Exit(model_files.show(config, online, as_json))


@models_app.command(
    "pull",
    epilog=examples(
        "coscheduler models pull --config my.toml",
        "HF_TOKEN=... coscheduler models pull --config my.toml --engine separation",
    ),
)
def pull_models(
    config: ConfigFile,
    engine: Annotated[
        EngineName | None, typer.Option(help="Only what this engine needs. (default: all)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what a config names by its repository ("hub:owner/name") into the local cache.

    Goes on where an interrupted download ended; large files are checked against their sha256. A
    gated repository needs your consent on its page, and HF_TOKEN or a login. The daemon itself
    never downloads anything. Exit status: 0 when everything is there, 1 otherwise.
    """
    from coscheduler.cli import model_files

    raise typer.Exit(model_files.fetch(config, engine, as_json))


@models_app.command(
    "check",
    epilog=examples(
        "coscheduler models check --config configs/24gb.toml",
        'coscheduler models check model.gguf --kv-budget "1.25 GiB"',
        "coscheduler models check model.gguf --n-ctx 8192 --json",
    ),
)
def check_model(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A GGUF file; or give --config.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check all that this config needs instead.")
    ] = None,
    kv_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help='Cap on the KV cache. (default: "1.25 GiB")'),
    ] = None,
    n_ctx: Annotated[
        int, typer.Option(min=0, metavar="N", help="Context, tokens. (default: what fits the cap)")
    ] = 0,
    kv_type: Annotated[
        KvType | None, typer.Option(help="Type of the cache. (default: the finest that fits)")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a card. (default: this machine's free)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Open all models of a config; or say what one GGUF file needs: context, layers, work.

    With --config every model is opened by its headers, and large files from the hub are compared
    with their checksums. With FILE: the largest context, the layers that fit, what work takes.
    Takes no device memory. Sizes of compute buffers on a card are estimates.
    """
    from coscheduler.cli import model_files, models

    if (file is None) == (config is None):
        raise typer.BadParameter("give either a GGUF FILE or --config FILE")
    if config is not None:
        raise typer.Exit(model_files.check(config, as_json))
    if file is not None:
        models.check(file, kv_budget, n_ctx, kv_type.value if kv_type else "", memory, as_json)


@transcripts_app.command(
    "join",
    epilog=examples(
        "coscheduler transcripts join Anna=1/transcript.json Bert=2/transcript.json -o joined",
        "coscheduler transcripts join monday.json -f srt -o subtitles",
    ),
)
def join_transcripts(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FILE", help="A transcript.json and who speaks in it."),
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output_dir", "-o", metavar="DIR", help="DIR/transcript.srt and so on."),
    ] = Path(),
    output_format: Annotated[
        Format, typer.Option("--output_format", "-f", help="What to write; all: not aud.")
    ] = Format.ALL,
    as_json: Json = False,
) -> None:
    """Make one transcript of several of the same recording, each of one voice, by their times.

    Every segment and word is kept, also where several speak at once. Without a NAME the speakers
    stay as they are in the FILE. Needs no daemon. Exit status: 0 done, 2 wrong usage.
    """
    from coscheduler.cli import voices

    voices.join_files(parts, output_dir, chosen(output_format), as_json)


@app.command(
    epilog=examples("coscheduler doctor", "coscheduler doctor --config configs/24gb.toml --json")
)
def doctor(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say what of this config will run. (default: any)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at this machine: card, driver, memory, disk, libraries, models; what will run, what not,
    and what to do.

    Takes no device memory and downloads nothing. Exit status: 0 when all of it will run, else 1.
    """
    from coscheduler.cli import doctor as doctors

    raise typer.Exit(doctors.show(config, as_json))


@app.command("templates", epilog=examples("coscheduler templates", "coscheduler templates --json"))
def list_templates(as_json: Json = False) -> None:
    """List the templates of --analyze: what each asks for, its version and variables."""
    from coscheduler.cli import templates

    templates.show(as_json)
