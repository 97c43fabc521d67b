"""The outline of a twin: its files, and their classes, methods and arguments."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(twin):
    found = {path.relative_to(ROOT / twin).as_posix() for path in (ROOT / twin).rglob("*.py")}
    return {name for name in found if not name.startswith(("kernels/", "baselines/"))}


def outline(twin, name):
    """[(class or function, its methods with their arguments or its arguments)]; `forward` is JAX's `__call__`."""

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
