"""The command line: one file per verb, loaded when the verb is asked for.

stdout carries the result and nothing else; progress and messages go to stderr. A fault that a
user can mend is one sentence and an exit code of `mfdiff_platform.errors`.
"""

from __future__ import annotations

import importlib
import sys

import click

VERBS = {
    "quickstart": "the whole chain on simulated data, in minutes",
    "simulate": "make a dataset of simulated slices",
    "ingest": "make a dataset of your own scans: BIDS, NIfTI, DICOM",
    "data": "check a dataset, and show what is in it",
    "pretrain": "train on phantoms (external stage)",
    "adapt": "search for a site's best recipe (internal stage)",
    "study": "list, show, resume, export and import studies, free disk",
    "compare": "compare models: the paper's tables, or one's own",
    "restore": "restore a scan with a trained model",
    "model": "compare, promote and roll back registered site models",
    "search-space": "print a search space, resolved",
    "ui": "open MLflow on the workspace",
    "cluster": "see what the nodes of a Ray cluster have",
    "dashboard": "find Ray's dashboard",
}
"""Verb to its line in the overview; kept here so that the overview loads none of them."""


class Verbs(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of the chain."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"mfdiff_platform.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from mfdiff_platform.cluster import versions

    click.echo("\n".join(f"{name} {number}" for name, number in versions().items()))
    ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Print versions and exit.",
)
def cli() -> None:
    """Find, choose and use the best low-dose PET restoration model for your site.

    \b
    Start here:    mfdiff-platform quickstart
    Then, at size: mfdiff-platform simulate --domain phantom
                   mfdiff-platform simulate --domain ood3
                   mfdiff-platform pretrain --gpus 8
                   mfdiff-platform adapt --domain ood3 --trials 50
                   mfdiff-platform ui
                   mfdiff-platform restore --model mfdiff-ood3@candidate
                       --pet lpet.nii.gz --mr t1.nii.gz --out spet.nii.gz

    Research use only; not a medical device.
    """


def main() -> None:
    """Entry point: run a verb, turn its faults into one sentence and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Exit code of the command line ``arguments``."""
    from mfdiff_core.errors import MfdiffError
    from mfdiff_platform.interrupt import Terminated, sigterm_raises

    try:
        with sigterm_raises():
            result = cli.main(arguments, prog_name="mfdiff-platform", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as fault:
        fault.show()
        return fault.exit_code
    except (click.Abort, KeyboardInterrupt) as fault:
        # click turns every KeyboardInterrupt into its own Abort
        terminated = isinstance(fault, Terminated) or isinstance(fault.__cause__, Terminated)
        word = "Terminated" if terminated else "Interrupted"
        click.echo(f"{word}; the same command goes on where it stopped.", err=True)
        return 143 if terminated else 130
    except MfdiffError as fault:
        from mfdiff_platform.errors import exit_code

        click.echo(f"Error: {fault}", err=True)
        return exit_code(fault)
