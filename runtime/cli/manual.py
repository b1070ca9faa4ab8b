"""The man page ``gvctl.1``, made from the parser and from what is said here besides.

``python -m runtime.cli.manual`` prints it; a test compares docs/gvctl.1 with it.
"""

from __future__ import annotations

import argparse

from runtime.cli.arguments import DESCRIPTION, OWN_ROOT, PROGRAM, build
from runtime.cli.completion import options, verbs

_ABOUT = f"""\
gvctl works on the containers that the shim containerd-shim-gvisor-v2 runs for containerd, on those
that runsc made, and on its own.
It talks to their sentries itself and runs no runsc command line.
.PP
Its OCI runtime commands take what
.BR runc (8)
takes, so that podman and docker can be given it as a runtime.
.PP
Without
.B \\-\\-root
it looks for containers below /run/containerd/runsc, where the shim keeps those of each containerd
namespace, below the
.I root
of the shim's options file, and in {OWN_ROOT}.
An id can be cut short where no other begins so.
"""
_NOTES = """\
.SH EXIT STATUS
0 for success and 1 for any failure, with a line on stderr.
.B exec
and
.B run
end with the status of the process that they ran; an
.B exec
that could not be run ends with 255.
.B doctor
ends with 1 if something on the host doesn't work.
With
.B \\-\\-log
and
.B \\-\\-log\\-format=json
an error is also a line
.RB { \\(dqlevel\\(dq :\\(dqerror\\(dq, \\(dqmsg\\(dq :..., \\(dqtime\\(dq :...}
in that file, as runc's callers read it.
.SH NOTES
Pids inside a sandbox are the sandbox's own; the host knows none but the sentry's.
.PP
.B pause
freezes the whole sandbox, and with it every container of the pod.
.PP
A gofer is never restarted: a container that loses its gofer ends.
The column RESTARTS of
.B top
counts gofers that came anew since it began to look, each of which is a container's that was
started again.
.PP
.B update
changes the limits of the host's cgroups, all that are named or none.
The first container of a sandbox has the sandbox's; those of another go to its own cgroup, which is
empty, and the limits of a pod that are its containers' sums change by as much.
Of a container that the shim looks after the shim is asked, and keeps to a memory limit of one
container of a pod; of what gvctl made nobody does.
containerd isn't told, so what it prints as a container's resources is what it was.
Containers that runsc made are refused.
.PP
.B exec \\-u
looks names up in /etc/passwd and /etc/group of the root file system as the host has it: accounts
that were added in an overlay of the sandbox, or in a file that is mounted there, are for numbers
only.
A user that is a number has group 0 unless one is named; one that is a name has all of its groups,
or the one that is named.
.PP
.B checkpoint
saves the whole sandbox, with what it was told of its network, so that a restore in the same network
namespace has the same addresses; of a sandbox that runsc started nobody knows them.
Containers of a pod that have stopped are left out: the sandbox forgets them.
While a program runs that
.B exec
or a client of the shim brought in, runsc before 20260520 would make an image that can't be
restored, so that is refused.
What such a program leaves running after its own end can't be told from the container's own
processes; if it holds on to the stdio that it was given, the image can't be restored: end it
first.
.PP
A container of a pod that containerd runs is better deleted by containerd, which is told nothing by
.BR delete .
.SH EXAMPLES
.nf
gvctl top
gvctl metrics \\-\\-listen 127.0.0.1:9410
gvctl exec \\-it ID sh
gvctl \\-n k8s.io port\\-forward ID 8080:80
gvctl logs \\-\\-tail 50 \\-F ID
gvctl checkpoint \\-\\-image\\-path /var/lib/images/one ID
podman \\-\\-runtime /usr/local/bin/gvctl run \\-\\-rm IMAGE dmesg
gvctl completion bash >/etc/bash_completion.d/gvctl
.fi
.SH SEE ALSO
.BR runc (8),
.BR containerd (8),
.BR ctr (8)
"""


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _option(action: argparse.Action) -> str:
    names = ", ".join(f"\\fB{_escape(name)}\\fR" for name in action.option_strings)
    if action.nargs != 0:
        value = "|".join(map(str, action.choices)) if action.choices else action.metavar
        names += f" \\fI{_escape(str(value or action.dest.upper()))}\\fR"
    return f".TP\n{names}\n{_escape(action.help or '')}\n"


def _verb(name: str, parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    text = f".SS {_escape(name)}\n.B {_escape(usage)}\n.PP\n{_escape(parser.description or '')}\n"
    for action in options(parser):
        if action.dest != "help":
            text += _option(action)
    return text


def page() -> str:
    """The page as roff."""
    text = f'.\\" Made by python -m runtime.cli.manual; change that.\n.TH {PROGRAM.upper()} 1\n'
    text += f".SH NAME\n{PROGRAM} \\- {_escape(DESCRIPTION)}\n"
    text += f".SH SYNOPSIS\n.B {PROGRAM}\n[options] command [options] [arguments]\n"
    text += f".SH DESCRIPTION\n{_ABOUT}.SH OPTIONS\n"
    text += "".join(_option(action) for action in options(build()))
    text += ".SH COMMANDS\n"
    text += "".join(_verb(name, parser) for name, parser in verbs().items())
    return text + _NOTES


if __name__ == "__main__":
    print(page(), end="")
