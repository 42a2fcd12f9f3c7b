"""Makes the mutants of one source file: each the file with one small fault in it.

The operators are mutmut's, with fewer of a call's arguments and of a string's letters, and three that it lacks: a
condition negated, a statement left out, a float ten times as large. mutmut's own runner is not used: it mutates
functions alone, and neither the constants of a module nor what is decorated, where a judge keeps its tolerances and
its properties.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_number, operator_string

NOT_ENTERED = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)
OBVIOUS = ("len", "isinstance", "super")  # without its argument each fails wherever it stands
COMPARED = (cst.Comparison, cst.BooleanOperation, cst.UnaryOperation)  # mutmut turns these round already


Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault in one file."""

    file: str
    scope: str  # qualified name of the function or class around it, "" at module level
    lines: tuple[int, int]  # of the statement, first and last
    was: str  # the changed lines, stripped and joined
    now: str
    source: str  # the whole file with the fault

    @property
    def key(self) -> Key:
        """Tells it from every other without line numbers, which any edit above moves."""
        return self.file, self.scope, self.was, self.now


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant that compiles and is not the same program, in the order of the source."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Visitor()
    wrapper.visit(visitor)
    spans, whole = wrapper.resolve(ByteSpanPositionProvider), source.encode()
    seen, made = {ast.dump(ast.parse(source))}, []
    for node, new, scope, lines in visitor.found:
        start, end = spans[node].start, spans[node].start + spans[node].length
        code = wrapper.module.code_for_node(new).encode()
        text = (whole[:start] + _spaced_as(whole[start:end], code) + whole[end:]).decode()  # deep_replace is slow
        try:
            program = ast.dump(ast.parse(text))
        except SyntaxError:
            continue
        if program not in seen:
            seen.add(program)
            made.append(Mutant(file, scope, lines, *_changed(source, text), text))
    return made


def _spaced_as(old: bytes, new: bytes) -> bytes:
    """With the white space of the old at both ends: some spans include it, and all code does."""
    head, tail = old[: len(old) - len(old.lstrip())], old[len(old.rstrip()) :]
    return head + new.strip() + tail


def _changed(source: str, text: str) -> tuple[str, str]:
    """The lines between what both begin with and what both end with."""
    was, now = source.splitlines(), text.splitlines()
    shortest = min(len(was), len(now))
    head = next((i for i in range(shortest) if was[i] != now[i]), shortest)
    tail = next((i for i in range(shortest - head) if was[-1 - i] != now[-1 - i]), shortest - head)
    return tuple(" ".join(line.strip() for line in lines[head : len(lines) - tail]) for lines in (was, now))


class _Visitor(cst.CSTVisitor):
    """Collects (node, its replacement, scope, lines of the statement)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, str, tuple[int, int]]] = []
        self._scope: list[str] = []
        self._statements: list[tuple[int, int]] = [(1, 1)]

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, NOT_ENTERED):
            return False
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in OBVIOUS:
            return False
        if isinstance(node, cst.Assign) and not self._scope and (_names_a_type(node.value) or _is_all(node)):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._scope.append(node.name.value)
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._statements.append(self._lines(node))
        for old, new in _replacements(node):
            self.found.append((old, new, ".".join(self._scope), self._statements[-1]))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._scope.pop()
        if isinstance(original_node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._statements.pop()

    def _lines(self, node: cst.CSTNode) -> tuple[int, int]:
        """Of a compound statement the head alone."""
        place = self.get_metadata(PositionProvider, node)
        if not isinstance(node, cst.BaseCompoundStatement):
            return place.start.line, place.end.line
        body = self.get_metadata(PositionProvider, node.body)
        return place.start.line, max(place.start.line, body.start.line - 1)


def _names_a_type(value: cst.BaseExpression) -> bool:
    """dict[str, Tensor], A | B or TypeVar("T") at module level: for annotations, which nobody evaluates."""
    if isinstance(value, cst.Call):
        return isinstance(value.func, cst.Name) and value.func.value == "TypeVar"
    if isinstance(value, cst.BinaryOperation):
        return isinstance(value.operator, cst.BitOr) and all(map(_is_class, (value.left, value.right)))
    return isinstance(value, cst.Subscript) and isinstance(value.value, cst.Name)


def _is_class(value: cst.BaseExpression) -> bool:
    return isinstance(value, cst.Name) and value.value[0].isupper() and not value.value.isupper()


def _is_all(node: cst.Assign) -> bool:
    """__all__ is for readers and linters; nobody here imports a star."""
    target = node.targets[0].target
    return isinstance(target, cst.Name) and target.value == "__all__"


def _replacements(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            if operator is operator_number and isinstance(node, cst.Float) and node.evaluated_value:
                made = [node.with_changes(value=repr(node.evaluated_value * 10))]
            elif operator is operator_arg_removal:
                made = list(_without_argument(node))
            else:
                made = list(operator(node))
            # Of a string's mutants one is enough; the other two change its case.
            yield from ((node, new) for new in (made[:1] if operator is operator_string else made))
    yield from _negated(node)
    yield from _left_out(node)


def _without_argument(call: cst.Call) -> Iterator[cst.Call]:
    """Each argument None, and each left out; of one given by name the latter alone, since None is its usual default.

    mutmut asks for both, and of `strict=True` for a third, its opposite, which operator_name makes already.
    """
    for i, arg in enumerate(call.args):
        without = call.with_changes(args=[*call.args[:i], *call.args[i + 1 :]])
        if arg.keyword:
            if not (isinstance(arg.value, cst.Name) and arg.value.value in ("True", "False")):
                yield without
            continue
        if not arg.star and not (isinstance(arg.value, cst.Name) and arg.value.value == "None"):
            yield call.with_changes(
                args=[*call.args[:i], arg.with_changes(value=cst.Name("None")), *call.args[i + 1 :]]
            )
        if len(call.args) > 1:
            yield without


def _negated(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """A condition that is a plain name or call; mutmut's operators reach comparisons alone."""
    if isinstance(node, cst.If | cst.While | cst.CompIf) and not isinstance(node.test, COMPARED):
        inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.test, cst.UnaryOperation(cst.Not(), inner)


def _left_out(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """A call made for its effect, a raise, or an assignment in place."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        only = node.body[0]
        effect = isinstance(only, cst.Expr) and isinstance(only.value, cst.Call)
        if effect or isinstance(only, cst.Raise | cst.AugAssign):
            yield node, node.with_changes(body=[cst.Pass()])
