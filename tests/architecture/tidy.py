"""The rules that neither ruff nor import-linter can see: one pass of `ast` over each source file.

`problems(path, text)` is the whole interface. `path` is relative to src/perdure, so that a table of
cases can plant a violation anywhere without writing a file. A message names the replacement.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

SRC: Final = Path(__file__).parents[2] / "src" / "perdure"

CORE_FILE_LINES_MAX: Final = 400
FILE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70
PORT_METHODS_MAX: Final = 10
LINE_COLUMNS_MAX: Final = 100
PACKAGE_LINES_MEDIAN_MAX: Final = 200

PURE: Final = frozenset({"api", "core", "goals", "policy", "wire"})
CLOCK_ALLOWED: Final = frozenset({"adapters", "cli", "client", "testing", "worker"})
SLEEP_ALLOWED: Final = frozenset({"adapters", "cli", "client", "testing"})
FILES_ALLOWED: Final = frozenset({"adapters", "cli", "testing"})

CORE_IMPORTS: Final = frozenset({
    "__future__", "bisect", "collections", "dataclasses", "datetime", "enum", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "msgspec", "operator", "perdure", "re",
    "types", "typing",
})  # fmt: skip

CLOCKS: Final = frozenset({
    "datetime.date.today", "datetime.datetime.now", "datetime.datetime.today",
    "datetime.datetime.utcnow", "os.getrandom", "os.urandom", "time.monotonic",
    "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns", "time.time", "time.time_ns",
    "uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7",
})  # fmt: skip
SLEEPS: Final = frozenset({"anyio.sleep", "asyncio.sleep", "time.sleep", "trio.sleep"})
FILES: Final = frozenset({"io.open", "open", "os.fdopen", "os.open"})
CODE: Final = frozenset({"eval", "exec"})
UNSAFE_MODULES: Final = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve"})
MUTABLE: Final = frozenset({
    "bytearray", "collections.Counter", "collections.OrderedDict", "collections.defaultdict",
    "collections.deque", "dict", "list", "set",
})  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A module as the rules see it; `names` says what each imported name stands for."""

    path: str
    text: str
    tree: ast.Module
    names: Mapping[str, str]

    @property
    def package(self) -> str:
        """The top-level package, or the module's own name: `core`, `bootstrap`."""
        return self.path.split("/")[0].removesuffix(".py")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """Every node of these kinds."""
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def full_name(self, node: ast.AST | None) -> str:
        """What a dotted expression refers to (`asyncio.sleep`), or an empty string."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.full_name(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""


Found = Iterator[tuple[int, str]]
Rule = Callable[[Source], Found]


def problems(path: str, text: str) -> list[str]:
    """Return what is untidy in one module, in the order of its lines."""
    source = read(path, text)
    found = sorted({finding for rule in RULES for finding in rule(source)})
    return [f"src/perdure/{path}:{line}: {message}" for line, message in found]


def read(path: str, text: str) -> Source:
    """Return a module as the rules see it."""
    tree = ast.parse(text)
    return Source(path, text, tree, _imported_names(tree))


def package_problems(lines: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the sizes of all modules (path -> lines) taken together."""
    middle = median(lines.values()) if lines else 0
    if middle <= PACKAGE_LINES_MEDIAN_MAX:
        return []
    found = f"the median file has {middle:g} lines, more than {PACKAGE_LINES_MEDIAN_MAX}"
    return [f"src/perdure: {found}: look for the missing concepts in the longest files"]


def modules() -> dict[str, str]:
    """Return every module of the package: path -> text."""
    return {
        path.relative_to(SRC).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(SRC.rglob("*.py"))
    }


def _imported_names(tree: ast.Module) -> dict[str, str]:
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
    return names


def _imports(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def _references(source: Source) -> Iterator[tuple[ast.expr, str]]:
    """Every mention of a name, called or only handed on: `default_factory=uuid4` counts."""
    for node in source.nodes(ast.Name, ast.Attribute):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node, source.full_name(node)


# --------------------------------------------------------------------------------------- sizes


def _sizes(source: Source) -> Found:
    lines = source.text.splitlines()
    budget = CORE_FILE_LINES_MAX if source.package == "core" else FILE_LINES_MAX
    if len(lines) > budget:
        yield 1, f"{len(lines)} lines, more than {budget}: move one concept to a file of its own"
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_COLUMNS_MAX:
            yield number, f"{len(line)} columns, more than {LINE_COLUMNS_MAX}: break the line"
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES_MAX:
            too_long = f"{node.name} has {length} lines, more than {FUNCTION_LINES_MAX}"
            yield node.lineno, f"{too_long}: give a part of it a name"


def _docstring(source: Source) -> Found:
    if not ast.get_docstring(source.tree):
        yield 1, "no docstring: say in one sentence what the module is for"


def _ports(source: Source) -> Found:
    if source.package != "ports":
        return
    for port in source.nodes(ast.ClassDef):
        assert isinstance(port, ast.ClassDef)
        if "typing.Protocol" not in map(source.full_name, port.bases):
            continue
        methods = [n for n in port.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        if len(methods) > PORT_METHODS_MAX:
            too_wide = f"{port.name} has {len(methods)} methods, more than {PORT_METHODS_MAX}"
            yield port.lineno, f"{too_wide}: a rule has leaked into it, take it back to the core"
        for method in methods:
            if not ast.get_docstring(method):
                yield method.lineno, f"{port.name}.{method.name}: say what it promises (docstring)"


# ------------------------------------------------------------------------ time, chance, the world


def _clocks(source: Source) -> Found:
    if source.package in CLOCK_ALLOWED:
        return
    called = {id(node.func) for node in source.nodes(ast.Call) if isinstance(node, ast.Call)}
    for node, name in _references(source):
        # Naming the type of a seeded generator that was handed in is not drawing from it.
        drawn = name.startswith(("random.", "secrets.")) and (
            name != "random.Random" or id(node) in called
        )
        if name in CLOCKS or drawn:
            yield node.lineno, f"{name}: use ports.clock"
        if name == "print":
            yield node.lineno, "print: use ports.telemetry, or return it to perdure.cli"


def _sleeps_and_files(source: Source) -> Found:
    may_sleep, may_open = source.package in SLEEP_ALLOWED, source.package in FILES_ALLOWED
    yields_only = {
        id(node.func)
        for node in source.nodes(ast.Call)
        if isinstance(node, ast.Call)
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == 0
    }
    for node, name in _references(source):
        if not may_sleep and name in SLEEPS and id(node) not in yields_only:
            yield node.lineno, f"{name}: use ports.clock"
        if not may_open and name in FILES:
            yield node.lineno, f"{name}: files are opened in perdure.adapters, behind a port"


def _commits(source: Source) -> Found:
    for call in source.nodes(ast.Call):
        assert isinstance(call, ast.Call)
        if not (isinstance(call.func, ast.Attribute) and call.func.attr == "commit"):
            continue
        if any(isinstance(a, ast.Starred) for a in call.args) or any(
            keyword.arg is None for keyword in call.keywords
        ):
            continue
        handed = [*call.args, *(keyword.value for keyword in call.keywords)]
        last = handed[-1] if len(handed) == 2 else None
        body = last.body if isinstance(last, ast.Lambda) else last
        if body is None or isinstance(body, ast.Constant):
            use = "pass commit(step, done), and let done look at it"
            yield call.lineno, f"the outcome of a commit is never ignored: {use}"


# ---------------------------------------------------------------------------------- the pure part


def _pure(source: Source) -> Found:
    if source.package not in PURE:
        return
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in source.nodes(*waits):
        line = getattr(node, "lineno", 1)
        yield line, "the pure packages wait for nothing: return a value, let the runtime wait"
    for node in source.nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        yield from _frozen(source, node)
    if source.package == "core":
        for line, module in _imports(source):
            if module.partition(".")[0] not in CORE_IMPORTS:
                yield line, f"core does not import {module}: take the value as an argument"


def _frozen(source: Source, node: ast.ClassDef) -> Found:
    is_struct = "msgspec.Struct" in map(source.full_name, node.bases)
    if (is_struct and not _says_frozen(node.keywords)) or _says_frozen(node.keywords, value=False):
        yield node.lineno, f"{node.name}: facts do not change, use Struct(frozen=True)"
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        name = source.full_name(call.func if call else decorator)
        if name == "dataclasses.dataclass" and not _says_frozen(call.keywords if call else []):
            yield node.lineno, f"{node.name}: facts do not change, use @dataclass(frozen=True)"


def _says_frozen(keywords: list[ast.keyword], *, value: bool = True) -> bool:
    return any(
        k.arg == "frozen" and isinstance(k.value, ast.Constant) and k.value.value is value
        for k in keywords
    )


def _mutable_defaults(source: Source) -> Found:
    if source.package not in PURE:
        return
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            made = isinstance(default, ast.Call) and source.full_name(default.func) in MUTABLE
            if made or isinstance(default, displays):
                assert default is not None
                yield default.lineno, "a mutable default is shared by all calls: use () or None"


# ------------------------------------------------------------------------------- what nobody does


def _unsafe(source: Source) -> Found:
    for line, module in _imports(source):
        if module.partition(".")[0] in UNSAFE_MODULES:
            yield line, f"{module}: what is stored is JSON, use msgspec"
    for node, name in _references(source):
        if name in CODE:
            yield node.lineno, f"{name}: text is never run, use a table or a parser"
        if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
            yield node.lineno, f"{name}: use yaml.safe_load"


def _notes(source: Source) -> Found:
    for number, line in enumerate(source.text.splitlines(), 1):
        if re.search(r"\b(FIXME|XXX)\b", line):
            yield number, "mend it now, or file an issue and write TODO #123"
        if re.search(r"\bTODO\b", line) and not re.search(r"#\d+", line):
            yield number, "a TODO names its issue: TODO #123"


def _swallowed(source: Source) -> Found:
    everything = {"Exception", "BaseException"}
    for node in source.nodes(ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        if node.type is None:
            yield node.lineno, "a bare except also takes cancellation: name the error"
        elif source.full_name(node.type) in everything and all(map(_says_nothing, node.body)):
            yield node.lineno, "an error is swallowed: name it, or tell ports.telemetry"
    for node in source.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        if source.full_name(node.func) == "contextlib.suppress" and everything & {
            source.full_name(argument) for argument in node.args
        }:
            yield node.lineno, "every error is suppressed: name the one that is expected"


def _says_nothing(statement: ast.stmt) -> bool:
    is_value = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_value or isinstance(statement, ast.Pass | ast.Continue)


RULES: Final[tuple[Rule, ...]] = (
    _sizes,
    _docstring,
    _ports,
    _clocks,
    _sleeps_and_files,
    _commits,
    _pure,
    _mutable_defaults,
    _unsafe,
    _notes,
    _swallowed,
)
