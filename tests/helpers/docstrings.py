"""The public definitions of a module that have no docstring."""

import ast

#: Decorators of functions that need no docstring: one takes over another's, the others are not what callers see.
EXEMPT = {"wraps", "overload"}


def undocumented(source):
    """Return (line, qualified name) of the public functions, classes and methods in ``source`` without a docstring.

    Public are names without a leading underscore, in private classes too, the method ``__call__``, and the functions
    that a public function returns. The code generators that Numba's intrinsics return are not.
    """
    return sorted(_missing(ast.parse(source), ""))


def _missing(node, prefix):
    for child in _definitions(node):
        public = not child.name.startswith("_") or child.name == "__call__"
        if public and ast.get_docstring(child) is None and not _decorators(child) & EXEMPT:
            yield child.lineno, prefix + child.name
        if public or isinstance(child, ast.ClassDef):
            yield from _missing(child, f"{prefix}{child.name}.")


def _definitions(node):
    """The classes and functions in the body of a module or a class, or the functions that a function returns."""
    if not isinstance(node, ast.FunctionDef):
        return [child for child in node.body if isinstance(child, ast.FunctionDef | ast.ClassDef)]
    if "intrinsic" in _decorators(node):
        return []
    values = [child.value for child in ast.walk(node) if isinstance(child, ast.Return)]
    parts = [part for value in values for part in (value.elts if isinstance(value, ast.Tuple) else [value])]
    returned = {part.id for part in parts if isinstance(part, ast.Name)}
    return [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name in returned]


def _decorators(node):
    """Last names of the decorators, such as ``wraps`` of ``@functools.wraps(function)``."""
    called = (decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list)
    return {ast.unparse(name).rpartition(".")[2] for name in called}
