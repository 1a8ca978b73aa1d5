"""`coscheduler doctor`: the findings about this machine, one line each."""

from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from coscheduler import doctor
from coscheduler.cli import EXIT_DONE, EXIT_FAILED, say
from coscheduler.doctor import Finding


def show(config: Path | None, as_json: bool) -> int:
    """Print the findings as they come; 1 when something will not run."""
    console = say.console(as_json=as_json)
    findings = []
    for finding in doctor.examine(config):
        findings.append(finding)
        console.print(_line(finding), soft_wrap=True)
    wrong = sum(not finding.ok for finding in findings)
    if as_json:
        say.print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        console.print("all of it will run" if not wrong else f"{wrong} to be put right")
    return EXIT_FAILED if wrong else EXIT_DONE


def _line(finding: Finding) -> Text:
    text = Text(f"{'ok  ' if finding.ok else 'NO  '}", style="green" if finding.ok else "bold red")
    text.append(f"{finding.what}: {say.printable(finding.found)}", style="default not bold")
    if finding.advice:
        text.append(f"\n      {say.printable(finding.advice)}", style="default not bold")
    return text
