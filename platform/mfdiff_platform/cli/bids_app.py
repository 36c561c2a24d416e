"""BIDS-App manners: ``--participant-label 01 02``, with either spelling of the option."""

from __future__ import annotations

import click

LABELS = ("--participant-label", "--participant_label")


class BidsCommand(click.Command):
    """A command whose ``--participant-label`` takes several values after one name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give every label an option name of its own, then go on as usual."""
        return super().parse_args(ctx, repeated(args))


def repeated(args: list[str]) -> list[str]:
    """``--participant-label 01 02`` as ``--participant-label 01 --participant-label 02``."""
    out: list[str] = []
    for place, arg in enumerate(args):
        before = args[place - 1] if place else ""
        follows = not arg.startswith("-") and not before.startswith("-") and _open(args[:place])
        if follows:
            out.append(LABELS[0])
        out.append(arg)
    return out


def _open(args: list[str]) -> bool:
    """Whether the last option named is that of the labels."""
    options = [arg for arg in args if arg.startswith("-")]
    return bool(options) and options[-1] in LABELS


label_option = click.option(
    *LABELS,
    "labels",
    multiple=True,
    metavar="LABEL...",
    help="Participants, with or without sub-.  [default: all]",
)
pet_filter_option = click.option(
    "--pet-filter",
    default="",
    help="Entities of the PET to use where there are several series, such as rec-acdyn.",
)
