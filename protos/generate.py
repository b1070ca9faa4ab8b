"""Makes ``<name>_pb2.py`` and ``<name>_pb2.pyi`` from each ``<name>.proto`` beside this file.

    python -m protos.generate            write them (needs grpcio-tools, for its protoc)
    python -m protos.generate --check    exit 1 if they are not what would be written

Without grpcio-tools, --check compares all files with the digests recorded in ``MANIFEST``, which
still catches an edit to either side.  A developer's tool: the shim never imports it.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "MANIFEST"
PACKAGE = "protos"

# Of FieldDescriptorProto
_BOOL, _STRING, _MESSAGE, _BYTES = 8, 9, 11, 12
_FLOATS = (1, 2)
_REPEATED = 3


def sources() -> list[Path]:
    """The .proto files, in a fixed order."""
    return sorted(HERE.glob("*.proto"))


def render() -> dict[str, str]:
    """File name -> text of everything that belongs beside the sources, MANIFEST included.

    Raises ImportError without grpcio-tools, and RuntimeError for a .proto that protoc refuses.
    """
    out: dict[str, str] = {}
    files = {f.name: f for f in _compile()}
    for name, file in files.items():
        stem = _stem(name)
        out[f"{stem}_pb2.py"] = _module(file)
        out[f"{stem}_pb2.pyi"] = _stub(file, files)
    digests = {path.name: path.read_bytes() for path in sources()}
    digests.update((name, text.encode()) for name, text in out.items())
    out[MANIFEST.name] = _manifest(digests)
    return out


def stale() -> list[str]:
    """Names of generated files that are missing, superfluous or differ; empty if all is well."""
    try:
        wanted = render()
    except ImportError:
        return stale_by_digest()
    present = {path.name for path in HERE.glob("*_pb2.py*")}
    bad = {n for n, text in wanted.items() if _text(HERE / n) != text}
    return sorted(bad | (present - wanted.keys()))


def stale_by_digest(directory: Path = HERE) -> list[str]:
    """As :func:`stale`, from the digests recorded when the files were made."""
    recorded: dict[str, str] = {}
    for line in _text(directory / MANIFEST.name).splitlines():
        digest, _, name = line.partition("  ")
        recorded[name] = digest
    actual = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("*.proto", "*_pb2.py", "*_pb2.pyi")
        for path in directory.glob(pattern)
    }
    names = recorded.keys() | actual.keys()
    return sorted(n for n in names if recorded.get(n) != actual.get(n))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _manifest(contents: dict[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {n}\n" for n, data in sorted(contents.items()))
    return "".join(lines)


def _compile() -> list[Any]:
    """FileDescriptorProtos of all sources, without what only text formats need."""
    from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
        descriptor_pb2,
    )
    from grpc_tools import protoc  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "set"
        names = [f"{PACKAGE}/{path.name}" for path in sources()]
        arguments = ["protoc", f"-I{HERE.parent}", f"--descriptor_set_out={target}", *names]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc refused the sources")
        bundle = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    files = sorted(bundle.file, key=lambda f: str(f.name))
    for file in files:
        for message in file.message_type:
            _strip(message)
    return list(files)


def _strip(message: Any) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _strip(nested)


def _stem(file: str) -> str:
    return file.rsplit("/", 1)[-1].removesuffix(".proto")


def _module(file: Any) -> str:
    """Text of the run-time module."""
    dependencies = tuple(str(d) for d in file.dependency)
    public = tuple(f"{PACKAGE}.{_stem(file.dependency[i])}_pb2" for i in file.public_dependency)
    lines = [f'"""Messages of {file.name}.  Made by {PACKAGE}/generate.py; do not edit."""', ""]
    lines += [f"import {PACKAGE}.{_stem(d)}_pb2" for d in dependencies]
    lines += [f"from {PACKAGE} import _pool", ""]
    for enum in file.enum_type:
        lines += [f"{v.name} = {v.number}" for v in enum.value]
        lines.append("")
    lines += [
        "__getattr__ = _pool.module(",
        "    globals(),",
        f'    file="{file.name}",',
        f'    package="{file.package}",',
        "    dependencies=(" + "".join(f'"{d}", ' for d in dependencies).rstrip() + "),",
        "    public=(" + "".join(f'"{p}", ' for p in public).rstrip() + "),",
        "    messages=(",
        *(f'        "{m.name}",' for m in file.message_type),
        "    ),",
        "    descriptor=(",
    ]
    data = file.SerializeToString(deterministic=True)
    lines += [f"        {data[i : i + 48]!r}" for i in range(0, len(data), 48)]
    lines += ["    ),", ")", ""]
    return "\n".join(lines)


def _stub(file: Any, files: dict[str, Any]) -> str:
    """Text of the type stub."""
    body: list[str] = []
    names = _names(file, files)
    for enum in file.enum_type:
        body.append("")
        body += [f"{v.name}: int" for v in enum.value]
    for message in file.message_type:
        body += ["", f"class {message.name}(_t.Message):"]
        body += [f"    {line}" for line in _members(message, names)]
    lines = [f"# Types of {file.name}.  Made by {PACKAGE}/generate.py; do not edit.", ""]
    text = "\n".join(body)
    if "Mapping[" in text or "Iterable[" in text:
        used = [n for n in ("Iterable", "Mapping", "MutableMapping") if f" {n}[" in text]
        lines += [f"from collections.abc import {', '.join(used)}", ""]
    needs = sorted(_stem(d) for d in file.dependency if f"{_stem(d)}_pb2." in text)
    lines += [f"from {PACKAGE} import _types as _t"]
    lines += [f"from {PACKAGE} import {n}_pb2" for n in needs]
    for index in file.public_dependency:
        other = files[file.dependency[index]]
        for name in _exports(other, files):
            lines.append(f"from {PACKAGE}.{_stem(other.name)}_pb2 import {name} as {name}")
    return "\n".join([*lines, *body, ""])


def _exports(file: Any, files: dict[str, Any]) -> list[str]:
    names = [str(m.name) for m in file.message_type]
    for enum in file.enum_type:
        names += [str(v.name) for v in enum.value]
    for index in file.public_dependency:
        names += _exports(files[file.dependency[index]], files)
    return sorted(names)


def _names(file: Any, files: dict[str, Any]) -> dict[str, str]:
    """Full message name, with a leading dot -> how the stub of ``file`` writes it."""
    names: dict[str, str] = {}
    for other in files.values():
        prefix = "" if other is file else f"{_stem(other.name)}_pb2."
        names.update((f".{other.package}.{m.name}", prefix + m.name) for m in other.message_type)
    return names


def _members(message: Any, names: dict[str, str]) -> list[str]:
    maps = {n.name: n for n in message.nested_type if n.options.map_entry}
    attributes: list[str] = []
    parameters: list[str] = []
    for field in message.field:
        entry = maps.get(str(field.type_name).rsplit(".", 1)[-1])
        kind = _python_type(field, names)
        if entry is not None:
            pair = ", ".join(_python_type(f, names) for f in entry.field)
            declared, accepted = f"MutableMapping[{pair}]", f"Mapping[{pair}]"
        elif field.label == _REPEATED:
            container = "Messages" if field.type == _MESSAGE else "Scalars"
            declared, accepted = f"_t.{container}[{kind}]", f"Iterable[{kind}]"
        else:
            declared = accepted = kind
        if entry is not None or field.label == _REPEATED or field.type == _MESSAGE:
            # Such a field is changed in place; assigning to it raises.
            attributes += ["@property", f"def {field.name}(self) -> {declared}: ..."]
        else:
            attributes.append(f"{field.name}: {declared}")
        parameters.append(f"{field.name}: {accepted} | None = ...")
    if not parameters:
        return ["def __init__(self) -> None: ..."]
    return [
        *attributes,
        "def __init__(",
        "    self,",
        "    *,",
        *(f"    {p}," for p in parameters),
        ") -> None: ...",
    ]


def _python_type(field: Any, names: dict[str, str]) -> str:
    if field.type == _MESSAGE:
        return names.get(str(field.type_name), "")
    if field.type == _BOOL:
        return "bool"
    if field.type == _STRING:
        return "str"
    if field.type == _BYTES:
        return "bytes"
    if field.type in _FLOATS:
        return "float"
    return "int"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit status."""
    if arguments == ["--check"]:
        bad = stale()
        for name in bad:
            print(f"{PACKAGE}/{name} is stale; run: python -m {PACKAGE}.generate", file=sys.stderr)
        return 1 if bad else 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    wanted = render()
    for path in HERE.glob("*_pb2.py*"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (HERE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
