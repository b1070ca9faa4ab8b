"""Completion scripts for bash, zsh and fish, made from the parser.

Ids are completed by asking ``gvctl list -q``.
"""

from __future__ import annotations

import argparse

from runtime.cli.arguments import PROGRAM, build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the verbs, by name."""
    for action in build()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no verbs")


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What begins with a dash, in order."""
    return [a for a in parser._actions if a.option_strings and a.help != argparse.SUPPRESS]


def _global() -> list[argparse.Action]:
    return options(build())


def _takes_id(parser: argparse.ArgumentParser) -> bool:
    return any(action.dest == "id" and not action.option_strings for action in parser._actions)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """All that can be typed next: options, and what an argument is chosen from."""
    words = [name for action in options(parser) for name in action.option_strings]
    for action in parser._actions:
        if action.choices and not action.option_strings and action.nargs != argparse.PARSER:
            words += map(str, action.choices)
    return words


def _valued(actions: list[argparse.Action]) -> list[str]:
    return [name for a in actions if a.nargs != 0 for name in a.option_strings]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bash() -> str:
    cases = "".join(
        f"        {name})\n"
        f"            words={_quote(' '.join(_words(parser)))}\n"
        f"            ids={'yes' if _takes_id(parser) else ''}\n"
        "            ;;\n"
        for name, parser in verbs().items()
    )
    choices = "".join(
        f"        {'|'.join(names)})\n"
        f'            COMPREPLY=($(compgen -W {_quote(values)} -- "$word"))\n'
        "            return ;;\n"
        for values, names in _choices().items()
    )
    valued = "|".join(_valued(_global()))
    names = " ".join([*verbs(), *(n for a in _global() for n in a.option_strings)])
    return f"""# {PROGRAM} completion for bash: source it, or put it in bash-completion's folder
_{PROGRAM}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb='' words='' ids='' i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {valued}) ((i++)) ;;
        -*) ;;
        *) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case "$verb ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{choices}    esac
    case $verb in
        '') words={_quote(names)} ;;
{cases}    esac
    if [ -n "$ids" ] && [[ $word != -* ]]; then
        words="$words $({PROGRAM} list -q 2>/dev/null)"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -F _{PROGRAM} {PROGRAM}
"""


def _choices() -> dict[str, list[str]]:
    """Values that options are chosen from, with the places: a verb, empty before it, and a name."""
    found: dict[str, list[str]] = {}
    for verb, actions in (("", _global()), *((n, options(p)) for n, p in verbs().items())):
        for action in actions:
            for name in action.option_strings if action.choices else ():
                values = " ".join(sorted(map(str, action.choices or ())))
                found.setdefault(values, []).append(f"'{verb} {name}'")
    return found


def _zsh_option(action: argparse.Action) -> list[str]:
    lines = []
    text = (action.help or "").replace("[", "(").replace("]", ")").replace(":", " -")
    for name in action.option_strings:
        value = ""
        if action.nargs != 0:
            values = f"({' '.join(map(str, action.choices))})" if action.choices else "_files"
            value = f":{(action.metavar or action.dest)!s}:{values}".replace("'", "")
        lines.append(_quote(f"{name}[{text}]{value}"))
    return lines


def _zsh() -> str:
    described = "\n".join(
        f"        {_quote(f'{name}:{parser.description}')}" for name, parser in verbs().items()
    )
    cases = ""
    for name, parser in verbs().items():
        lines = [line for action in options(parser) for line in _zsh_option(action)]
        if _takes_id(parser):
            lines.append(_quote(f"1:id:_{PROGRAM}_ids"))
            lines.append("'*::argument:_default'")
        else:
            chosen = [w for w in _words(parser) if not w.startswith("-")]
            lines.append(
                _quote(f"1:what:({' '.join(chosen)})") if chosen else "'*::argument:_default'"
            )
        cases += f"        {name}) _arguments {' '.join(lines)} ;;\n"
    globals_ = " ".join(line for action in _global() for line in _zsh_option(action))
    return f"""#compdef {PROGRAM}
_{PROGRAM}_ids() {{
    local -a ids
    ids=(${{(f)"$({PROGRAM} list -q 2>/dev/null)"}})
    _describe id ids
}}
_{PROGRAM}() {{
    local -a commands
    local state line
    commands=(
{described}
    )
    _arguments -C {globals_} '1:command:->command' '*::argument:->argument'
    case $state in
    command) _describe command commands ;;
    argument)
        case $line[1] in
{cases}        esac
        ;;
    esac
}}
_{PROGRAM} "$@"
"""


def _fish_option(action: argparse.Action, condition: str) -> str:
    line = f"complete -c {PROGRAM} -n {_quote(condition)}"
    for name in action.option_strings:
        line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if action.nargs != 0:
        line += " -x" if action.choices else " -r"
        if action.choices:
            line += f" -a {_quote(' '.join(map(str, action.choices)))}"
    return line + f" -d {_fish_quote(action.help or '')}\n"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish() -> str:
    text = f"# {PROGRAM} completion for fish\n"
    for action in _global():
        text += _fish_option(action, "__fish_use_subcommand")
    for name, parser in verbs().items():
        description: Any = parser.description
        told = _fish_quote(description)
        text += f"complete -c {PROGRAM} -f -n __fish_use_subcommand -a {name} -d {told}\n"
        seen = f"__fish_seen_subcommand_from {name}"
        for action in options(parser):
            text += _fish_option(action, seen)
        if _takes_id(parser):
            text += (
                f"complete -c {PROGRAM} -f -n {_quote(seen)} -a '({PROGRAM} list -q 2>/dev/null)'\n"
            )
        chosen = [w for w in _words(parser) if not w.startswith("-")]
        if chosen:
            text += f"complete -c {PROGRAM} -f -n {_quote(seen)} -a {_quote(' '.join(chosen))}\n"
    return text
