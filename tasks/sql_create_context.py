"""sql-create-context (b-mc2; CC BY 4.0): a table's schema and a question -> the SQL query.

Rows hold `question`, `context` (CREATE TABLE ...) and `answer`. An answer ends at its first line break, so that queries
of several lines are learned and compared on one.
"""
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.llama import Llama
from tasks.generative import GenerativeTask
from tasks.rows import read_rows
from tasks.task import Asking, Example, Splits, shuffled

GOLD_DOES_NOT_COMPILE = "a gold query that SQLite does not compile"


@dataclass(frozen=True)
class SqlExample(Example):
    context: str  # the schema


class SqlCreateContext(GenerativeTask):
    name, metric = "sql-create-context", "exact_match"
    title, licence = "SQL query for a question", "CC BY 4.0"
    rows = "question, context, answer"
    protocol = ("greedy, first line; exact match apart from case, white space, quotes and a final semicolon; "
                "compiles: SQLite takes it as a query of the row's schema")
    needs_data = True

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """A tenth of the rows is for validation (Kanda & Hatano, Sec. 3.1).

        Without a test file, another tenth is for test. No schema is in two splits. Training rows whose schema is in the
        test file are left out and counted."""
        every, test = self._examples(data), self._examples(test_data) if test_data else []
        taken = {schema_of(example) for example in test}
        rows = shuffled([example for example in every if schema_of(example) not in taken], seed)[:limit]
        tenth = max(1, len(rows) // 10)
        validation, rest = whole_schemas(rows, tenth)
        found, train = ([], rest) if test else whole_schemas(rest, tenth)
        n = sum(schema_of(example) in taken for example in every)
        left_out = {"their schema is in the test file": n} if n else {}
        return Splits(train, validation, test or found, left_out)

    def _examples(self, path: Path) -> list[SqlExample]:
        return [SqlExample(sql_prompt(row["context"], row["question"]), one_line(row["answer"]), row["context"])
                for row in read_rows(path, ("question", "context", "answer"))]

    def answers(self, model: Llama, rows: Sequence[SqlExample], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A row whose gold query does not compile is flagged: `compiles` is meaningless for it."""
        for i, line in super().answers(model, rows, asking):
            flags = line.get("flags", []) + [GOLD_DOES_NOT_COMPILE] * (not compiles(rows[i].answer, rows[i].context))
            yield i, {**line, **({"flags": flags} if flags else {})}

    def marks(self, row: SqlExample, line: dict) -> dict[str, float]:
        return {"exact_match": float(normalise_sql(line["text"]) == normalise_sql(row.answer)),
                "compiles": float(compiles(line["text"], row.context))}


def sql_prompt(context: str, question: str) -> str:
    return f"{context.strip()}\nQuestion: {question.strip()}\nSQL:"


QUOTED = re.compile(r"('[^']*'|\"[^\"]*\"|`[^`]*`)")


def one_line(query: str) -> str:
    """Each line break, and the spaces around it, as one space: `SELECT a\\n  FROM t` -> `SELECT a FROM t`.

    Unchanged where that would be another query: a line break inside quotes, or one that ends a comment."""
    query = query.strip()
    pieces = QUOTED.split(query)  # what is quoted is at odd places
    if any("\n" in quoted or "\r" in quoted for quoted in pieces[1::2]) or any("--" in bare for bare in pieces[::2]):
        return query
    return "".join(piece if i % 2 else re.sub(r"[^\S\r\n]*[\r\n]\s*", " ", piece) for i, piece in enumerate(pieces))


def normalise_sql(query: str) -> str:
    """Removes differences of case, white space, quotes and a final semicolon.

    `SELECT a  FROM t WHERE b = 'X';` -> `select a from t where b = "x"`."""
    query = re.sub(r"[\"'`]", '"', query.lower())
    return re.sub(r"\s+", " ", query).strip().rstrip(";").rstrip()


# ---- splits that share no schema -------------------------------------------------------------------------------------

def schema_of(example: SqlExample) -> str:
    """The schema without differences of case and white space."""
    return " ".join(example.context.lower().split())


def whole_schemas(rows: Sequence[SqlExample], n: int) -> tuple[list[SqlExample], list[SqlExample]]:
    """(chosen, rest): all rows of a schema are on one side. `chosen` has at most `n` rows, but at least one schema.

    Schemas are taken in their order in `rows`, if all their rows still fit."""
    groups: dict[str, list[SqlExample]] = {}
    for row in rows:
        groups.setdefault(schema_of(row), []).append(row)
    chosen: set[str] = set()
    for schema, group in groups.items():
        if len(group) <= n or not chosen:
            chosen.add(schema)
            n -= len(group)
    return ([row for row in rows if schema_of(row) in chosen],
            [row for row in rows if schema_of(row) not in chosen])


# ---- SQLite's compiler -----------------------------------------------------------------------------------------------

# The actions that a schema may take, in a temporary database in memory. It may not attach a file, load an extension or
# set a pragma. SQLite inserts into and updates its own table of tables.
SCHEMA_MAY = {sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE,
              sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_REINDEX}
QUERY_MAY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
TABLE = re.compile(r"\s*CREATE\s+TABLE\b", re.I)
# The first word is checked as well: SQLite compiles some statements, such as VACUUM, without asking the authorizer.
QUERY = re.compile(r"\s*(SELECT|WITH|VALUES)\b", re.I)


# SQLite expands common table expressions before it compiles them. 20 of them, each naming the one before twice, took
# 13 s and 2.2 GB; a window for each of 1,500 columns took 22 s. These bounds count work, not seconds, so that a slow
# machine gives the same result. With them, no query that was tried takes a second.
LONGEST_SQL = 100_000    # characters, of a schema and of a query
MOST_CHECKS = 10_000     # questions to the authorizer: one a column, function and SELECT that is compiled
MOST_MEMORY = 32 << 20   # bytes; PRAGMA hard_heap_limit (SQLite 3.31, 2020) holds for SQLite in the whole process
LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000, sqlite3.SQLITE_LIMIT_SQL_LENGTH: LONGEST_SQL,
          sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000, sqlite3.SQLITE_LIMIT_ATTACHED: 0}


def compiles(query: str, context: str) -> bool:
    """Whether SQLite compiles `query`, one statement that only reads, against the tables of `context`.

    The query is explained, never run, in a database in memory. The compiler refuses every action that is not reading.
    Statements of the context that SQLite does not accept (such as a table that is created twice) are skipped. Text
    that needs more than the bounds above does not compile."""
    if max(len(query), len(context)) > LONGEST_SQL:
        return False
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"PRAGMA hard_heap_limit = {MOST_MEMORY}")
        for limit, most in LIMITS.items():
            connection.setlimit(limit, most)
        connection.set_authorizer(only(SCHEMA_MAY))
        for statement in filter(TABLE.match, statements(context)):
            _taken(connection, statement)
        connection.set_authorizer(only(QUERY_MAY))
        return bool(QUERY.match(query)) and _taken(connection, f"EXPLAIN {query}")
    finally:
        connection.close()


def _taken(connection: sqlite3.Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
        return True
    # such as two statements, a NUL, half a surrogate pair, or more than MOST_MEMORY
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError):
        return False


def only(allowed: set[int]):
    """An authorizer that denies other actions, and all actions after MOST_CHECKS."""
    left = MOST_CHECKS

    def decide(action: int, *_) -> int:
        nonlocal left
        left -= 1
        return sqlite3.SQLITE_OK if action in allowed and left >= 0 else sqlite3.SQLITE_DENY
    return decide


# A quoted name or text, or a comment: to its end, or to the end of the script.
CLOSED = re.compile(r"""'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;""",
                    re.S)


def statements(script: str) -> list[str]:
    """`statements("CREATE TABLE a (b TEXT); CREATE TABLE c (d TEXT)")` -> the two.

    A semicolon in quotes or in a comment does not end a statement."""
    ends = [match.end() for match in CLOSED.finditer(script) if match[0] == ";"]
    found = [script[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    rest = script[ends[-1] if ends else 0:] + ";"
    return [statement for statement in found + [rest] * sqlite3.complete_statement(rest)
            if statement.strip(" \n\t\r;")]
