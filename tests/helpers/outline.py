"""The outline of a twin: its files, their classes, methods, arguments and docstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(twin):
    """Return the relative paths of the twin's modules, without kernels and baselines."""
    found = {path.relative_to(ROOT / twin).as_posix() for path in (ROOT / twin).rglob("*.py")}
    return {name for name in found if not name.startswith(("kernels/", "baselines/"))}


def outline(twin, name):
    """Return [(class, its methods with their arguments) or (function, its arguments)], `forward` as `__call__`."""

    def arguments(node):
        return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]

    def method(node):
        return node.name.replace("forward", "__call__"), arguments(node)

    out = []
    for node in ast.parse((ROOT / twin / name).read_text()).body:
        if isinstance(node, ast.ClassDef):
            out.append((node.name, [method(n) for n in node.body if isinstance(n, ast.FunctionDef)]))
        elif isinstance(node, ast.FunctionDef):
            out.append((node.name, arguments(node)))
    return out


def docstrings(twin, name):
    """Return the docstrings of a module and of all its definitions, without the twin's own name."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = ast.walk(ast.parse((ROOT / twin / name).read_text()))
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
    return [text.replace(twin, "impl") for text in found if text]
