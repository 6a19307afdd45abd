"""What the code declares as an AsyncAPI 3 document: channels, operations, messages and their schemas.

How our words stand in AsyncAPI's:

- A *channel* is a routing key on the exchange of all events; and, beside those, the queue of each service that listens.
- An *operation* is one service that sends or receives the event of one key. A pattern receives each event that it
  matches; one that matches no event declared here receives whatever comes, from the service's queue.
- A *message* is one version of an event, as whoever publishes it writes it: a CloudEvent that holds its data. Of an
  event that nobody here publishes, it is what the first subscriber reads.

Keys of components hold letters, digits, ``.``, ``-`` and ``_`` alone. The same code gives the same document, byte for
byte: nothing here reads a clock, a network, or, unless asked for the server, where RabbitMQ is.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from uuid import UUID

import yaml
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from pydantic_core import from_json, to_jsonable_python

from broker.envelope import CONTENT_TYPE, Story, encode
from broker.errors import ContractError, near_miss
from broker.events import Event, closest_version
from broker.service import Service
from broker.settings import Settings
from broker.tools.catalogue import Entry, differ
from broker.tools.examples import Example, Quiet, example_of, settled, unique
from broker.topology import is_pattern, matches, service_topology

VERSION = "3.0.0"
"""Later ones are refused by tools that people still use, and say nothing that we would need."""
BINDING = "0.3.0"
"""Of the amqp bindings."""
ENVELOPE = "CloudEvents.Envelope"
"""Its key among the schemas. The names of models hold no dot there, so none can take it."""
MOMENT = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
"""When all examples happened."""

REF = "#/components/{}/{}"
CORRELATION = {
    "description": "The story that the event belongs to: the id of its first event.",
    "location": "$message.payload#/correlationid",
}

Format = Literal["yaml", "json"]


@dataclass(frozen=True, slots=True)
class About:
    """What a document says of itself.

    Attributes:
        services: only these services, and the events they publish or get; none: all.
        title: of the application. Unsaid: the service's name, or "Business events".
        version: of the application.
        server: say where RabbitMQ is, as the settings do (without the login).
    """

    services: tuple[str, ...] = ()
    title: str | None = None
    version: str = "0.0.0"
    server: bool = False


def form_of(wanted: str | None, file: Path | None) -> Format:
    """The format that is wanted; unsaid, as the file's name ends, else YAML.

    Raises:
        ContractError: it is none that we write.
    """
    ending = "" if file is None else file.suffix.lower()
    match wanted or {".json": "json"}.get(ending, "yaml"):
        case "yaml":
            return "yaml"
        case "json":
            return "json"
    raise ContractError(f"--format {wanted}: write yaml or json.")


class _Yaml(yaml.SafeDumper):
    """YAML that reads well: texts of several lines stand as they are, and nothing refers to an anchor."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, data: str) -> yaml.Node:
        style = '"' if re.search("[\x85\u2028\u2029]", data) else "|" if "\n" in data else None  # or they get lost
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Yaml.add_representer(str, _Yaml.text)
# YAML 1.2 takes 1e3 for a number, and PyYAML, which knows 1.1, would not put it in quotes
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789"))


def written(document: Mapping[str, Any], form: Format) -> bytes:
    """A document as it stands in a file."""
    if form == "yaml":
        text: str = yaml.dump(document, Dumper=_Yaml, sort_keys=False, allow_unicode=True, width=120)
    else:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace")


def describe(
    services: Iterable[Service], entries: Iterable[Entry], settings: Settings, about: About | None = None
) -> dict[str, Any]:
    """The document of services and the events between them.

    Raises:
        ContractError: there is no such service, or there are no events.
    """
    about = about or About()
    known = {service.name: service for service in services}
    for name in about.services:
        if name not in known:
            hint = near_miss(name, known) or f" There are {', '.join(known) or 'none'}."
            raise ContractError(f"There is no service {name!r}.{hint} Look elsewhere: --from MODULE.")
    shown = {name: known[name] for name in known if not about.services or name in about.services}
    used = [entry for entry in entries if not about.services or not shown.keys().isdisjoint(_users(entry))]
    if not used and not any(service.subscribes for service in shown.values()):
        what = f"{', '.join(about.services)} uses no events" if about.services else "No events are declared there"
        raise ContractError(f"{what}, so there is nothing to describe. Name another place: --from MODULE.")
    return Document(known, list(shown.values()), used, settings, about).as_json()


def _users(entry: Entry) -> Iterator[str]:
    yield from entry.publishers
    for it in entry.subscribers:
        yield it.service


@dataclass(frozen=True)
class Message:
    """One version of an event, as somebody defines it.

    Attributes:
        key: among the messages of the document.
        entry: who publishes the event, and who gets it.
        event: its definition.
        publishers: who publishes it by this definition. Nobody: it is how a subscriber reads it.
        other: other publishers define it otherwise, and came first.
    """

    key: str
    entry: Entry
    event: type[Event]
    publishers: tuple[str, ...] = ()
    other: bool = False

    @property
    def mode(self) -> JsonSchemaMode:
        """What its schema is about: what publishers write, or what a subscriber reads."""
        return "serialization" if self.publishers else "validation"


@dataclass(frozen=True)
class Document:
    """A document in the making.

    Args:
        services: all services by name, since who publishes an event defines it.
        shown: those that the document is about.
        entries: the events that it is about.
    """

    services: Mapping[str, Service]
    shown: Sequence[Service]
    entries: Sequence[Entry]
    settings: Settings
    about: About

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        servers = self._servers() if self.about.server else {}
        operations = {key: operation for service in self.shown for key, operation in self._operations(service)}
        channels = {key: self._channel(key, messages) for key, messages in self._by_key.items()}
        channels |= {_queue(service): self._queue_channel(service) for service in self.shown if service.subscribes}
        return {
            "asyncapi": VERSION,
            "info": self._info(),
            **({"servers": servers} if servers else {}),
            "defaultContentType": CONTENT_TYPE,
            "channels": channels,
            "operations": operations,
            "components": self._components({it["action"] for it in operations.values()}),
        }

    # -- the events ----------------------------------------------------------------------------------------------------

    @cached_property
    def messages(self) -> list[Message]:
        """All messages, by key and version."""
        entries = sorted(self.entries, key=lambda it: (it.event.__contract__.key, it.event.__contract__.version))
        return [message for entry in entries for message in self._definitions(entry)]

    def _definitions(self, entry: Entry) -> Iterator[Message]:
        """The definitions of a version of an event: the publishers', each that differs; else a subscriber's."""
        contract = entry.event.__contract__
        key = f"{contract.key}.v{contract.version}"
        found: dict[type[Event], list[str]] = {}
        for publisher in entry.publishers:
            event = _same(self.services[publisher].publishes, entry.event) or entry.event
            known = next((other for other in found if not differ(other, event)), event)
            found.setdefault(known, []).append(publisher)
        for event, publishers in found.items():
            other = event is not next(iter(found))
            yield Message(f"{key}-{publishers[0]}" if other else key, entry, event, tuple(publishers), other)
        if not found:
            readers = (_same(self.services[it.service].handlers.events, entry.event) for it in entry.subscribers)
            yield Message(key, entry, next((reader for reader in readers if reader), entry.event))

    @cached_property
    def _by_key(self) -> dict[str, list[Message]]:
        found: dict[str, list[Message]] = {}
        for message in self.messages:
            found.setdefault(message.event.__contract__.key, []).append(message)
        return found

    # -- channels ------------------------------------------------------------------------------------------------------

    def _channel(self, key: str, messages: Sequence[Message]) -> dict[str, Any]:
        return {
            "address": key,
            "title": messages[0].event.__contract__.name,
            "messages": {message.key: _ref("messages", message.key) for message in messages},
            "bindings": _ref("channelBindings", "event"),
        }

    def _queue_channel(self, service: Service) -> dict[str, Any]:
        topology = service_topology(service.name, service.handlers.bindings, self.settings.exchange)
        (queue,) = (queue for queue in topology.queues if queue.name == service.name)
        bindings = service.handlers.bindings
        received = [message for message in self.messages if _gets(service, message)]
        return {
            "address": queue.name,
            "title": f"The queue of {service.name}",
            "description": f"Bound to the exchange {_code(self.settings.exchange)} by {_codes(bindings)}; "
            f"{service.name} alone consumes it.",
            **({"messages": {it.key: _ref("messages", it.key) for it in received}} if received else {}),
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {
                        "name": queue.name,
                        "durable": True,
                        "exclusive": False,
                        "autoDelete": False,
                        **self._vhost,
                    },
                    "x-arguments": dict(queue.arguments),
                    "x-bindings": bindings,
                    "bindingVersion": BINDING,
                }
            },
        }

    @property
    def _vhost(self) -> dict[str, str]:
        """Of a server that is not told, the virtual host is not either."""
        return {"vhost": unquote(urlsplit(self.settings.hosts[0]).path[1:]) or "/"} if self.about.server else {}

    # -- operations ----------------------------------------------------------------------------------------------------

    def _operations(self, service: Service) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, messages in self._by_key.items():
            sent = [message for message in messages if service.name in message.publishers]
            if sent:
                yield f"{service.name}.sends.{key}", self._sends(service, key, sent)
        for key, messages in self._by_key.items():
            received = [message for message in messages if _gets(service, message)]
            if received:
                yield f"{service.name}.receives.{key}", self._receives(service, key, received)
        unheard = [pattern for pattern in service.handlers.bindings if not self._declared(pattern)]
        if unheard:
            yield f"{service.name}.receives", self._receives_unheard(service, unheard)

    def _declared(self, pattern: str) -> bool:
        return not is_pattern(pattern) or any(matches(pattern, key) for key in self._by_key)

    def _sends(self, service: Service, key: str, messages: Sequence[Message]) -> dict[str, Any]:
        causes = dict.fromkeys(cause for message in messages for cause in _causes(service, message.event))
        caused = f", caused by {', '.join(map(markdown, causes))}" if causes else ""
        return {
            "action": "send",
            "title": f"{service.name} publishes {messages[0].event.__contract__.name}",
            "description": f"Published by {_code(service.name)}{caused}.",
            **_rest("send", service, key, messages),
        }

    def _receives(self, service: Service, key: str, messages: Sequence[Message]) -> dict[str, Any]:
        ways = [it for message in messages for it in message.entry.subscribers if it.service == service.name]
        handlers = [handler for handler in service.subscribes if handler.name in {it.handler for it in ways}]
        documented = [handler.function.__doc__ for handler in handlers if inspect.isroutine(handler.function)]
        summary = next((said for doc in documented if (said := documentation(doc)[0])), None)
        patterns = sorted({it.binding for it in ways if not it.exact})
        told = [
            f"Handled by {_codes(dict.fromkeys(it.handler for it in ways))}, from the queue {_code(service.name)}.",
            *([f"Subscribed by {_codes(patterns)}."] if patterns else []),
            *dict.fromkeys(note for message in messages for note in _narrower(service, message)),
        ]
        return {
            "action": "receive",
            "title": f"{service.name} receives {messages[0].event.__contract__.name}",
            **({"summary": summary} if summary else {}),
            "description": " ".join(told),
            **_rest("receive", service, key, messages),
        }

    def _receives_unheard(self, service: Service, patterns: Sequence[str]) -> dict[str, Any]:
        return {
            "action": "receive",
            "title": f"{service.name} receives what matches {', '.join(patterns)}",
            "description": f"Subscribed by {_codes(patterns)}, which no event declared here matches.",
            **_rest("receive", service, _queue(service)),
        }

    # -- messages and schemas ------------------------------------------------------------------------------------------

    def _components(self, actions: Iterable[str]) -> dict[str, Any]:
        exchange = {"name": self.settings.exchange, "type": "topic", "durable": True, "autoDelete": False}
        bindings: dict[str, dict[str, Any]] = {
            "receive": {"ack": True},
            "send": {"deliveryMode": 2, "mandatory": self.settings.log, "timestamp": True},
        }
        channel = {"is": "routingKey", "exchange": exchange | self._vhost, "bindingVersion": BINDING}
        operations = {action: {"amqp": bindings[action] | {"bindingVersion": BINDING}} for action in sorted(actions)}
        refs, schemas = self._schemas()
        return {
            "messages": {message.key: self._message(message, refs[message.key]) for message in self.messages},
            "schemas": {ENVELOPE: envelope_schema()} | schemas,
            "correlationIds": {"story": CORRELATION},
            "channelBindings": {"event": {"amqp": channel}},
            **({"operationBindings": operations} if operations else {}),
        }

    def _schemas(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """A reference to the schema of each message's data; and all schemas, each once."""
        wanted = list(dict.fromkeys((message.event, message.mode) for message in self.messages))
        refs, schema = models_json_schema(wanted, ref_template=REF.format("schemas", "{model}"), schema_generator=Quiet)
        definitions = schema.get("$defs", {})
        found = {key: seventh(definitions[key]) for key in sorted(definitions)}
        return {it.key: seventh(refs[it.event, it.mode]) for it in self.messages}, found

    def _message(self, message: Message, data: Mapping[str, Any]) -> dict[str, Any]:
        contract = message.event.__contract__
        versions = {it.event.__contract__.version for it in self._by_key[contract.key]}
        version = f", version {contract.version}" if len(versions) > 1 else ""
        by = f", as {message.publishers[0]} publishes it" if message.other else ""
        summary, description = documentation(vars(message.event).get("__doc__"))
        example = self._example(message)
        return {
            "name": contract.name,
            "title": f"{contract.name}{version}{by}",
            **({"summary": summary} if summary else {}),
            **({"description": description} if description else {}),
            "contentType": CONTENT_TYPE,
            "correlationId": _ref("correlationIds", "story"),
            "payload": payload_schema(message.event, data),
            "bindings": {"amqp": {"messageType": contract.name, "bindingVersion": BINDING}},
            **({"examples": [{"payload": example}]} if example is not None else {}),
        }

    def _example(self, message: Message) -> dict[str, Any] | None:
        """The whole event as it would stand on the wire."""
        made: Example[Event] | None = example_of(message.event)
        if made is None:
            return None
        name = message.event.__contract__.name
        story = self._story(name)
        causation = _example_id(story[1]) if len(story) > 1 else None
        with suppress(Exception):  # the model's serializers are its author's, and may raise anything
            body, _ = encode(
                made.read,
                event_id=_example_id(name),
                source=next(iter(message.publishers), "elsewhere"),
                time=MOMENT,
                story=Story(_example_id(story[-1]), causation),
            )
            whole: dict[str, Any] = from_json(body)
            held = made.read.model_dump(by_alias=True)
            whole["data"] = settled(held, whole["data"]) if message.publishers else made.data
            return None if _refers(whole) else whole
        return None

    def _story(self, name: str) -> list[str]:
        """An event, what caused it, what caused that, and so on."""
        story = [name]
        while (cause := self._caused_by.get(story[-1])) and cause not in story:
            story.append(cause)
        return story

    @cached_property
    def _caused_by(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for service in self.services.values():
            for event in service.publishes:
                for cause in _causes(service, event):
                    found.setdefault(event.__contract__.name, cause)
        return found

    # -- what it says of itself ----------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Any]:
        title = self.about.title or (self.shown[0].name if len(self.about.services) == 1 else "Business events")
        rows = [
            f"| {markdown(it.name)} | {_code(it.key)} | {', '.join(publishers) or 'nobody'} "
            f"| {', '.join(subscribers) or 'nobody'} |"
            for it, publishers, subscribers in self._rows()
        ]
        told = (
            f"What happened in the business. Each event is a CloudEvent, published to the topic exchange "
            f"{_code(self.settings.exchange)} under its routing key; RabbitMQ hands it to the queue of every service "
            "that has subscribed."
        )
        table = ["| event | routing key | published by | subscribed by |", "|---|---|---|---|", *rows]
        description = "\n".join([told, "", *table]) if rows else told
        return {"title": title, "version": self.about.version, "description": description}

    def _rows(self) -> Iterator[tuple[Any, list[str], list[str]]]:
        for messages in self._by_key.values():
            entries = [message.entry for message in messages]
            publishers = sorted({name for entry in entries for name in entry.publishers})
            subscribers = sorted({it.service for entry in entries for it in entry.subscribers})
            yield messages[0].event.__contract__, publishers, subscribers

    def _servers(self) -> dict[str, Any]:
        hosts = [urlsplit(host) for host in self.settings.hosts]
        return {
            "rabbitmq" if len(hosts) == 1 else f"rabbitmq-{number}": {
                "host": host.netloc.rpartition("@")[2],
                "protocol": host.scheme,
                "protocolVersion": "0.9.1",
                "pathname": host.path,
                "security": [{"type": "userPassword", "description": "A RabbitMQ user."}],
            }
            for number, host in enumerate(hosts, 1)
        }


# -- parts of a document ---------------------------------------------------------------------------------------------


def _ref(kind: str, key: str) -> dict[str, Any]:
    return {"$ref": REF.format(kind, key)}


def _queue(service: Service) -> str:
    """The key of a queue's channel. The keys of events hold no capital letter."""
    return f"Queue.{service.name}"


def _rest(action: str, service: Service, channel: str, messages: Iterable[Message] = ()) -> dict[str, Any]:
    """What is the same for all operations."""
    refs = [{"$ref": f"#/channels/{channel}/messages/{message.key}"} for message in messages]
    return {
        "channel": {"$ref": f"#/channels/{channel}"},
        **({"messages": refs} if refs else {}),
        "tags": [{"name": service.name}],
        "bindings": _ref("operationBindings", action),
    }


def _same(events: Iterable[type[Event]], like: type[Event]) -> type[Event] | None:
    """Of a service's events the one of that name and version."""
    wanted = (like.__contract__.name, like.__contract__.version)
    return next((it for it in events if (it.__contract__.name, it.__contract__.version) == wanted), None)


def _gets(service: Service, message: Message) -> bool:
    return any(it.service == service.name for it in message.entry.subscribers)


def _causes(service: Service, event: type[Event]) -> Iterator[str]:
    """The names of the events whose handlers return this one."""
    for handler in service.subscribes:
        if _same(handler.returns, event):
            for cause in handler.events:
                yield cause.__contract__.name


def _narrower(service: Service, message: Message) -> Iterator[str]:
    """What a subscriber reads of an event, if it is not what the publisher writes."""
    contract = message.event.__contract__
    named = {it.__contract__.version: it for it in service.handlers.events if it.__contract__.name == contract.name}
    own = named.get(contract.version)
    if own is None and named:
        read_as = closest_version(named, contract.version).__contract__.version
        yield f"Version {contract.version} is read as version {read_as}."
    elif own is not None and differ(own, message.event):
        properties = own.model_json_schema(schema_generator=Quiet).get("properties", {})
        yield f"Of {markdown(contract.name)} it reads {_codes(properties) or 'no field'}."


def envelope_schema() -> dict[str, Any]:
    """What is around the data of every event: the attributes of CloudEvents 1.0 that we write or read."""
    text = {"type": "string", "minLength": 1}
    return {
        "title": "CloudEvent",
        "description": "CloudEvents 1.0, structured mode.",
        "type": "object",
        "properties": {
            "specversion": {"type": "string", "const": "1.0"},
            "id": text | {"description": "The event's id, the same each time it is delivered."},
            "source": text | {"description": "Who published it: the name of a service or program."},
            "type": text | {"description": "The business event name."},
            "time": {"type": "string", "format": "date-time", "description": "When it was published."},
            "subject": {"type": "string", "description": "The entity that it is about."},
            "datacontenttype": {"type": "string", "description": "The media type of the data: JSON."},
            "dataschema": {"type": "string", "description": "Its routing key and the version of its contract."},
            "correlationid": {"type": "string", "description": CORRELATION["description"]},
            "causationid": {
                "type": "string",
                "description": "The event that caused it. The first of a story has none.",
            },
            "traceparent": {"type": "string", "description": "W3C trace context."},
            "data": {"description": "What happened."},
        },
        "required": ["specversion", "id", "source", "type"],
    }


def payload_schema(event: type[Event], data: Mapping[str, Any]) -> dict[str, Any]:
    """A whole event: the envelope, and what of it this event decides."""
    contract = event.__contract__
    decided: dict[str, Any] = {"type": {"const": contract.name}, "dataschema": {"const": contract.schema}}
    if contract.subject is not None:
        decided["subject"] = {"description": f"The {_code(contract.subject)} of its data."}
    own = {"type": "object", "properties": decided | {"data": data}, "required": ["data"]}
    return {"allOf": [_ref("schemas", ENVELOPE), own]}


def _example_id(name: str) -> UUID:
    """The id of the example of an event: time-ordered, as all ids are."""
    return UUID(int=int(MOMENT.timestamp() * 1000) << 80 | unique(name, 7).int & (1 << 80) - 1)


# -- schemas ---------------------------------------------------------------------------------------------------------

REFERENCE = "$ref"
FIRST = (REFERENCE, "title", "description", "type", "format", "const", "enum", "properties", "required")
ORDER = {word: place for place, word in enumerate(FIRST)}
NAMED = {"properties", "patternProperties", "definitions", "$defs"}
LISTED = {"allOf", "anyOf", "oneOf"}
NESTED = {"items", "additionalProperties", "additionalItems", "propertyNames", "contains", "not", "if", "then", "else"}


def seventh(schema: Any) -> Any:
    """JSON Schema as pydantic writes it (2020-12) in the words of draft 07, which are AsyncAPI's."""
    if not isinstance(schema, Mapping):
        return schema  # true or false
    made: dict[str, Any] = {}
    for word, value in sorted(schema.items(), key=lambda it: ORDER.get(it[0], len(FIRST))):
        if word in NAMED and isinstance(value, Mapping):
            made[word] = {name: seventh(each) for name, each in value.items()}
        elif word in LISTED:
            made[word] = [seventh(each) for each in value]
        elif word == "prefixItems":
            made["items"] = [seventh(each) for each in value]
        elif word == "items" and "prefixItems" in schema:
            made["additionalItems"] = seventh(value)
        elif word in NESTED:
            made[word] = [seventh(each) for each in value] if isinstance(value, list) else seventh(value)
        elif word == "discriminator":
            continue  # OpenAPI's; AsyncAPI's own is another. Each choice holds a constant that tells it apart.
        elif word == REFERENCE or not _refers(value):
            made[word] = to_jsonable_python(value, fallback=str, inf_nan_mode="null")
    named = made.get("properties", {})
    if REFERENCE in named:  # a field of that name: described so that no tool takes it for a reference
        made["patternProperties"] = made.get("patternProperties", {}) | {r"^\$ref$": named.pop(REFERENCE)}
    if REFERENCE in made and len(made) > 1:  # draft 07 ignores what stands beside a reference
        made = {"allOf": [{REFERENCE: made.pop(REFERENCE)}]} | made
    return made


def _refers(data: Any) -> bool:
    """Whether some tool would take data for a reference."""
    if isinstance(data, Mapping):
        return REFERENCE in data or any(map(_refers, data.values()))
    return isinstance(data, list | tuple) and any(map(_refers, data))


# -- texts -----------------------------------------------------------------------------------------------------------


def documentation(doc: str | None) -> tuple[str, str]:
    """A docstring: its first paragraph on one line, and the rest, which counts as CommonMark."""
    first, _, rest = inspect.cleandoc(doc or "").partition("\n\n")
    return " ".join(first.split()), rest.strip()


def markdown(text: str) -> str:
    """Text that CommonMark, and what tables and links GitHub adds to it, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&$:@.])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(_code, texts))
