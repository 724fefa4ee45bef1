"""``llmaas model``: the models on this machine that commands and requests may name.

Law: it works on the registry, a file in the data folder, so that it needs no daemon; one that runs goes by it from its
next start on. A model is examined before it is registered. Files are never deleted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.model_pull import file_from
from llmaas.cli.options import add_actions, add_settings, configured, loaded
from llmaas.cli.out import human_bytes, print_json, printable, table
from llmaas.config.model_kinds import ModelKind
from llmaas.config.settings import SETTINGS, flag
from llmaas.config.show import show_setting
from llmaas.config_file import expanded
from llmaas.errors import ConfigError
from llmaas.model_files.entry import SETTINGS as OWN_SETTINGS
from llmaas.model_files.entry import ModelEntry, check_name
from llmaas.model_files.gguf import GgufFacts, examine_files
from llmaas.model_files.registry import ModelRegistry
from llmaas.model_files.source import source_of
from llmaas.model_files.tier import tier_of
from llmaas.weights_tier import WeightsTier

if TYPE_CHECKING:
    from llmaas.api.model_list import ListedModel

_EPILOG = """\
examples:
  llmaas model add small m.gguf --cells 4096               a file that is there; 'add' again changes it
  llmaas model pull coder hf:OWNER/REPO/FILE.gguf          from Hugging Face
  llmaas model pull coder https://example.org/m.gguf --sha256 HEX    goes on where it was interrupted
  llmaas model ls                                          all models; * is the default one
  llmaas model show small                                  one of them
  llmaas model default small                               what 'llmaas serve' serves without --model
  llmaas model rm small                                    forget it; its file and its contexts stay

'llmaas serve --models all' serves them all, with a process for each that is in use; docs/models.md has more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser, of_client=False)

    ls = action("ls", _ls, "list models")
    ls.add_argument("--json", action="store_true", help="print JSON")
    add = action("add", _add, "register a GGUF file under a name")
    pull = action("pull", _add, "load a file from the web, and register it")
    for sub, metavar in ((add, "FILE"), (pull, "SOURCE")):
        sub.add_argument("name")
        sub.add_argument("file", metavar=metavar, help="path, hf:OWNER/REPO/FILE.gguf or https:// address")
        sub.add_argument("--sha256", default="", help="what the checksum of a file that is loaded must be")
        sub.add_argument("--pinned", action="store_true", help="keep it in memory while several models are served")
    show = action("show", _show, "show a model")
    default = action("default", _default, "let a model be the default one")
    rm = action("rm", _rm, "forget a model; its file and its contexts stay")
    for sub in (show, default, rm):
        sub.add_argument("name")
    show.add_argument("--json", action="store_true", help="print JSON")
    for sub in (add, pull):
        add_settings(sub, ["data_dir", *OWN_SETTINGS])
    for sub in (show, default, rm):
        add_settings(sub, ["data_dir"])
    add_settings(ls, ["data_dir", "socket", "daemon_uid"])


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _registry(args: argparse.Namespace) -> ModelRegistry:
    return ModelRegistry(configured(args).data_dir)


def _ls(args: argparse.Namespace) -> int:
    from llmaas.cli.served_states import served_models, state_text  # --help does not wait for it

    models, served = _registry(args).read(), {model.name: model for model in served_models(loaded(args))}
    if args.json:
        rows_of = []
        for entry in models.entries:
            there = served.get(entry.name)
            state, expected_s = (None, None) if there is None else (there.state, there.expected_s)
            facts = {"default": entry.name == models.default, "state": state, "expected_s": expected_s}
            rows_of.append({**entry.as_map(), **facts, "tier": _tier(entry, there).value})
        print_json(rows_of)
    elif models.entries:
        rows = [
            [
                f"{entry.name}{' *' if entry.name == models.default else ''}",
                human_bytes(entry.size_bytes),
                "yes" if entry.pinned else "no",
                _tier(entry, served.get(entry.name)).value,
                state_text(served[entry.name]) if entry.name in served else "-",
                " ".join(f"{name}={value}" for name, value in entry.settings.items()),
                str(entry.file),
            ]
            for entry in models.entries
        ]
        print(table(["NAME", "SIZE", "PINNED", "TIER", "STATE", "SETTINGS", "FILE"], rows, sys.stdout))
    else:
        print("No models yet; 'llmaas model add NAME FILE' registers one. The packaged one is served meanwhile.")
    return 0


def _tier(entry: ModelEntry, served: ListedModel | None) -> WeightsTier:
    """Where its weights are: as the daemon says that serves it among several, else by its file."""
    found = served.tier if served is not None else None
    return found or tier_of(entry.file)


def _add(args: argparse.Namespace) -> int:
    check_name(args.name)
    registry, source = _registry(args), source_of(args.file)
    settings = _own_settings(args)
    if source is None:
        if args.sha256:
            raise ConfigError("--sha256 is for files that are loaded", hint="sha256sum FILE tells a file's.")
        file, sha256 = expanded(Path(args.file)).absolute(), ""
    else:
        file, sha256 = file_from(source, registry.folder, args.sha256)
    facts, size = examine_files(file)
    pulled = args.file if source is not None else ""
    entry = ModelEntry(args.name, file, size, source=pulled, sha256=sha256, pinned=args.pinned, settings=settings)
    entry = registry.add(entry)
    print(
        f"{printable(entry.name)}: {printable(facts.title or file.stem)}, {human_bytes(size)}, {printable(str(file))}"
    )
    if facts.kind[0] is not ModelKind.WRITER:
        print(f"it {_kind(facts)}")
    return 0


def _kind(facts: GgufFacts) -> str:
    """What the model does, for people."""
    kind, why = facts.kind
    return f"{kind.value} ({printable(facts.architecture)}{f': {why}' if why else ''})"


def _own_settings(args: argparse.Namespace) -> dict[str, str]:
    """The settings that the command line gives the model. Raises ConfigError for a wrong value."""
    found = {}
    for name in OWN_SETTINGS:
        raw, row = getattr(args, name), SETTINGS[name]
        if raw is None:
            continue
        try:
            found[name] = str(show_setting(row, row.kind.read(raw, Path.cwd())))
        except ValueError:
            raise ConfigError(f"setting {name} (flag {flag(name)}) is {raw!r}; it must be {row.kind.allowed}") from None
    return found


def _show(args: argparse.Namespace) -> int:
    registry = _registry(args)
    models = registry.read()
    entry = models.find(args.name)
    facts, size = examine_files(entry.file)
    shown: dict[str, object] = {
        **entry.as_map(),
        "default": entry.name == models.default,
        "size_bytes": size,
        "store": str(registry.store_of(entry)),
        "title": facts.title,
        "architecture": facts.architecture,
        "kind": _kind(facts),
        "trained_context": facts.context_length,
    }
    if args.json:
        print_json(shown)
        return 0
    for name, value in shown.items():
        text = " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(printable(f"{name:16} {human_bytes(size) if name == 'size_bytes' else text}".rstrip()))
    return 0


def _default(args: argparse.Namespace) -> int:
    print(f"{printable(_registry(args).set_default(args.name).name)} is the default model")
    return 0


def _rm(args: argparse.Namespace) -> int:
    registry = _registry(args)
    entry = registry.remove(args.name)
    print(f"forgot {printable(entry.name)}; its file {printable(str(entry.file))} stays, and so do its contexts")
    return 0
