"""The event log for people: which of its messages are meant, and what they say."""

from broker.eventlog import Entry, EventLog, Handling, Span, open_log, time_of

__all__ = ["Entry", "EventLog", "Handling", "Span", "open_log", "time_of"]
