"""The prose of a Typst document: what a reader sees, without code, computed values, references and formulas."""

import re

_NAME = re.compile(r"[A-Za-z][\w-]*")
_STATEMENTS = {"let", "set", "show", "import"}
_CLOSING = {"(": ")", "{": "}"}


def prose(source):
    """The text of ``source``. Content inside code, such as captions and branches, is prose; a bare number in $ $, too.

    Computed values leave the mark "‹›", so that no words run together.
    """
    return _Reader(source).markup(end=None)


class _Reader:
    def __init__(self, source):
        self.source, self.at = source, 0

    def markup(self, end):
        """Prose up to ``end`` or the end of the source."""
        found = []
        while self.at < len(self.source):
            here = self.source[self.at]
            if self.source.startswith("//", self.at):
                self._skip_to("\n")
            elif here == "\\":
                found.append(self.source[self.at + 1 : self.at + 2])
                self.at += 2
            elif here == "`":
                self.at += 1
                self._skip_to("`")
                self.at += 1
                found.append("‹›")
            elif here == "$":
                found.append(self._formula())
            elif here == "@" or (here == "<" and re.match(r"<[\w-]+>", self.source[self.at :])):
                self.at = re.compile(r"[@<][\w-]+>?").match(self.source, self.at).end()
                found.append("‹›")
            elif here == "#":
                self.at += 1
                found.append("‹›" + self._expression())
            elif here == end:
                self.at += 1
                break
            elif here == "[":
                self.at += 1
                found.append("[" + self.markup(end="]") + "]")
            else:
                found.append(here)
                self.at += 1
        return "".join(found)

    def _skip_to(self, mark):
        place = self.source.find(mark, self.at)
        self.at = len(self.source) if place < 0 else place

    def _formula(self):
        start = self.at + 1
        self.at = start
        self._skip_to("$")
        inside = self.source[start : self.at]
        self.at += 1
        return inside if re.fullmatch(r"\s*[\d.,]+\s*", inside) else "‹›"

    def _expression(self):
        """Skip a code expression of the markup; return the prose in its content blocks."""
        name = _NAME.match(self.source, self.at)
        if not name:
            return self._brackets()
        self.at = name.end()
        word = name.group()
        if word in _STATEMENTS:
            return self._code(end="\n")
        if word == "context":
            self.at += 1
            return self._expression()
        if word == "if":
            return self._branches()
        found = self._brackets()
        while self.source.startswith(".", self.at) and _NAME.match(self.source, self.at + 1):
            self.at = _NAME.match(self.source, self.at + 1).end()
            found += self._brackets()
        return found

    def _brackets(self):
        """Arguments and content blocks that follow immediately."""
        found = []
        while self.at < len(self.source) and self.source[self.at] in "([{":
            here = self.source[self.at]
            self.at += 1
            found.append(self.markup(end="]") if here == "[" else self._code(end=_CLOSING[here]))
        return " ".join(found)

    def _branches(self):
        found = [self._code(end=("[", "{"))]
        while True:
            found.append(self._brackets())
            otherwise = re.compile(r"\s*else\s*(if)?\s*").match(self.source, self.at)
            if not otherwise:
                return " ".join(found)
            self.at = otherwise.end()
            if otherwise.group(1):
                self._code(end=("[", "{"))

    def _code(self, end):
        """Skip code up to ``end``; stop before it if it is a tuple. Return the prose in its content blocks."""
        found = []
        while self.at < len(self.source):
            here = self.source[self.at]
            if isinstance(end, tuple) and here in end:
                break
            self.at += 1
            if here == end:
                break
            if here == '"':
                self._skip_to('"')
                self.at += 1
            elif here == "$":
                self.at -= 1
                found.append(self._formula())
            elif here == "[":
                found.append(self.markup(end="]"))
            elif here in _CLOSING:
                found.append(self._code(end=_CLOSING[here]))
        return " ".join(found)
