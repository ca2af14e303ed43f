"""How long files and functions may be, and what the package does without: `global`, broad `except`, catch-all names."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator

import pytest

from tests.architecture.source_tree import Source, package_sources

MAX_FILE_LINES = 400
MAX_MEDIAN_FILE_LINES = 150  # the aim is 130
MAX_FUNCTION_LINES = 80
MAX_P95_FUNCTION_LINES = 40

# The two process boundaries, where an unknown error must become a reply or an exit code. One handler each.
BROAD_EXCEPT_ALLOWED = {"hpc_marl/base/rpc_handler.py", "hpc_marl/workers/__main__.py"}
BROAD = {"Exception", "BaseException"}

VAGUE_MODULE = re.compile(r"(^|_)(utils?|common|misc|helpers?|managers?)$")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(source: Source) -> list[FunctionNode]:
    """Return every function of a file, nested ones and methods too."""
    return [node for node in ast.walk(source.tree) if isinstance(node, FunctionNode)]


def function_lines(function: FunctionNode) -> int:
    """Count the lines from `def` to the end, without the docstring: saying more about a function is never a fault."""
    first = function.body[0]
    is_doc = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_doc else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def length_violations(sources: tuple[Source, ...]) -> list[str]:
    """Say which files and functions are too long."""
    found = []
    for source in sources:
        if (num_lines := len(source.text.splitlines())) > MAX_FILE_LINES:
            found.append(f"{source.path}: {num_lines} lines, at most {MAX_FILE_LINES}")
        for function in functions_of(source):
            if (num_lines := function_lines(function)) > MAX_FUNCTION_LINES:
                found.append(
                    f"{source.at(function)}: {function.name} has {num_lines} lines, at most {MAX_FUNCTION_LINES}"
                )
    return found


def habit_violations(source: Source) -> Iterator[str]:
    """Yield the `global` statements, broad handlers and vague names of a file."""
    if VAGUE_MODULE.search(source.module.rpartition(".")[2]):
        yield f"{source.path}: name the module after what it does"
    num_broad_allowed = int(source.path in BROAD_EXCEPT_ALLOWED)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{source.at(node)}: global {', '.join(node.names)}"
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Manager"):
            yield f"{source.at(node)}: class {node.name}: say what it does, not that it manages"
        elif _is_broad(node):
            if num_broad_allowed == 0:
                yield f"{source.at(node)}: catches everything; name the exceptions"
            num_broad_allowed = max(num_broad_allowed - 1, 0)


def _is_broad(node: ast.AST) -> bool:
    """Whether `node` is `except:`, `except Exception`, a tuple with it, or `suppress(Exception)`."""
    if isinstance(node, ast.ExceptHandler):
        caught = [node.type] if not isinstance(node.type, ast.Tuple) else list(node.type.elts)
        return any(one is None or _last_name(one) in BROAD for one in caught)
    if isinstance(node, ast.Call) and _last_name(node.func) == "suppress":
        return any(_last_name(argument) in BROAD for argument in node.args)
    return False


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def missing_docstrings(source: Source) -> Iterator[str]:
    """Yield every public module, class and function without a docstring."""
    if ast.get_docstring(source.tree) is None:
        yield f"{source.path}: the module has no docstring"
    yield from _missing_below(source, source.tree)


def _missing_below(source: Source, scope: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in scope.body:
        if not isinstance(node, FunctionNode | ast.ClassDef) or node.name.startswith("_") or _repeats(node):
            continue
        if ast.get_docstring(node) is None:
            yield f"{source.at(node)}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _missing_below(source, node)


def _repeats(node: FunctionNode | ast.ClassDef) -> bool:
    """Whether the definition only adds to one that is documented: an overload or a property's setter."""
    return any(
        _last_name(decorator) in {"overload", "setter", "deleter"} for decorator in node.decorator_list
    )


def untyped_signatures(source: Source) -> Iterator[str]:
    """Yield every function that lacks the type of an argument or of what it returns."""
    methods = {
        id(node) for scope in ast.walk(source.tree) if isinstance(scope, ast.ClassDef) for node in scope.body
    }
    for function in functions_of(source):
        arguments = [*function.args.posonlyargs, *function.args.args]
        is_static = any(_last_name(decorator) == "staticmethod" for decorator in function.decorator_list)
        if id(function) in methods and not is_static:
            arguments = arguments[1:]
        arguments += function.args.kwonlyargs
        arguments += [argument for argument in (function.args.vararg, function.args.kwarg) if argument]
        untyped = [argument.arg for argument in arguments if argument.annotation is None]
        if function.returns is None:
            untyped.append("return")
        if untyped:
            yield f"{source.at(function)}: {function.name}: no type for {', '.join(untyped)}"


def percentile_95(values: list[int]) -> float:
    """Return the value that 95 % are not above."""
    return sorted(values)[max(int(len(values) * 0.95 + 0.5) - 1, 0)]


def test_no_file_or_function_is_too_long() -> None:
    found = length_violations(package_sources())
    assert not found, "\n".join(found)


def test_files_and_functions_are_short_on_the_whole() -> None:
    files = [len(source.text.splitlines()) for source in package_sources() if source.text.strip()]
    functions = [
        function_lines(function) for source in package_sources() for function in functions_of(source)
    ]
    summary = (
        f"{len(files)} files, median {statistics.median(files):g}, longest {max(files)} lines; "
        f"{len(functions)} functions, median {statistics.median(functions):g}, "
        f"p95 {percentile_95(functions):g}, longest {max(functions)} lines"
    )
    print(summary)
    assert statistics.median(files) <= MAX_MEDIAN_FILE_LINES, summary
    assert percentile_95(functions) <= MAX_P95_FUNCTION_LINES, summary


def test_habits() -> None:
    found = [text for source in package_sources() for text in habit_violations(source)]
    assert not found, "\n".join(found)


def test_the_allowed_broad_handlers_exist() -> None:
    paths = {source.path for source in package_sources()}
    assert paths >= BROAD_EXCEPT_ALLOWED


def test_everything_public_has_a_docstring() -> None:
    found = [text for source in package_sources() for text in missing_docstrings(source)]
    assert not found, "\n".join(found)


def test_every_signature_is_typed() -> None:
    found = [text for source in package_sources() for text in untyped_signatures(source)]
    assert not found, "\n".join(found)


def test_planted_lengths_are_found() -> None:
    body = "    x = 1\n"
    long_function = Source("hpc_marl/a.py", "def f() -> None:\n" + body * MAX_FUNCTION_LINES)
    assert length_violations((long_function,)) == [
        f"hpc_marl/a.py:1: f has {MAX_FUNCTION_LINES + 1} lines, at most 80"
    ]
    documented = Source("hpc_marl/a.py", 'def f() -> None:\n    """' + "words\n" * 90 + '    """\n' + body)
    assert function_lines(functions_of(documented)[0]) == 2
    assert length_violations((documented,)) == []
    long_file = Source("hpc_marl/a.py", "x = 1\n" * (MAX_FILE_LINES + 1))
    assert length_violations((long_file,)) == ["hpc_marl/a.py: 401 lines, at most 400"]


def test_percentile() -> None:
    assert percentile_95(list(range(1, 101))) == 95
    assert percentile_95([7]) == 7


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    global x\n    x = 1",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (OSError, BaseException) as error:\n    raise",
        "import builtins\ntry:\n    f()\nexcept builtins.Exception:\n    pass",
        "import contextlib\nwith contextlib.suppress(OSError, Exception):\n    f()",
        "class WorkerManager:\n    pass",
    ],
)
def test_a_planted_habit_is_found(code: str) -> None:
    assert len(list(habit_violations(Source("hpc_marl/base/a.py", code)))) == 1


@pytest.mark.parametrize("name", ["utils", "common", "misc", "file_utils", "rpc_helpers"])
def test_a_planted_vague_module_is_found(name: str) -> None:
    assert len(list(habit_violations(Source(f"hpc_marl/base/{name}.py", "")))) == 1
    assert list(habit_violations(Source("hpc_marl/base/utilisation.py", ""))) == []


def test_an_allowed_file_has_one_broad_handler() -> None:
    one = "try:\n    f()\nexcept Exception:\n    pass\n"
    path = min(BROAD_EXCEPT_ALLOWED)
    assert list(habit_violations(Source(path, one))) == []
    assert len(list(habit_violations(Source(path, one * 3)))) == 2


@pytest.mark.parametrize(
    ("code", "num_missing"),
    [
        ("x = 1", 1),
        ('"""Doc."""\ndef f(): pass\ndef _g(): pass', 1),
        ('"""Doc."""\nclass A:\n    def f(self): pass\n    def __len__(self): return 0', 2),
        ('"""Doc."""\nclass _A:\n    def f(self): pass', 0),
        (
            '"""Doc."""\nclass A:\n    """Doc."""\n    @property\n    def f(self): pass\n'
            "    @f.setter\n    def f(self, x): pass",
            1,
        ),
    ],
)
def test_planted_missing_docstrings_are_found(code: str, num_missing: int) -> None:
    assert len(list(missing_docstrings(Source("hpc_marl/a.py", code)))) == num_missing


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(x, *a, y=1, **k) -> None: ...", ["no type for x, y, a, k"]),
        ("def f(x: int): ...", ["no type for return"]),
        ("class A:\n    def f(self, x) -> None: ...", ["no type for x"]),
        ("class A:\n    @staticmethod\n    def f(x) -> None: ...", ["no type for x"]),
        ("class A:\n    def f(self, x: int, *, y: str = '') -> None:\n        def g(z: int) -> int: ...", []),
    ],
)
def test_planted_untyped_signatures_are_found(code: str, expected: list[str]) -> None:
    found = list(untyped_signatures(Source("hpc_marl/a.py", code)))
    assert [text.rpartition(": ")[2] for text in found] == expected
