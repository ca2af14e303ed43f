"""Every test is checked for what it leaves behind."""

from tests.leaks import marked_session, nothing_left_behind

__all__ = ["marked_session", "nothing_left_behind"]
