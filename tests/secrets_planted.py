"""The secrets that tests give to resources: no message, log record or picture of anything may show one."""

from __future__ import annotations

MARK = "pl4nted"

PASSWORD = f"{MARK}-password"
TOKEN = f"{MARK}-token"
API_KEY = f"{MARK}-api-key"
DSN_PASSWORD = f"{MARK}-dsn@pass/word"  # with the characters that parsers of URLs stumble over
STORAGE_SECRET = f"{MARK}-storage-secret"
HEADER = f"{MARK}-header"

# What the whole suite is searched for: the mark of those above, and the words that older tests use.
MARKS = (MARK, "sesame", "hunter2")
