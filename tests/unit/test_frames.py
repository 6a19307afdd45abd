"""Frames: what we build pamqp reads, what pamqp builds we read, however it is cut, and rubbish is called so."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection, Queue
from pamqp.constants import FRAME_END
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from broker.rabbitmq import frames
from broker.rabbitmq.frames import Delivered, FrameError, Splitter, decode_properties
from tests.fuzz import hostile as anything

FRAME_MAX = 64
"""Small, so that bodies need several frames."""
ROOMY = 4096
OURS, HERS, FOREIGN = 1, 2, 7
AT = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)

Call = tuple[object, ...]


class Recorder:
    """A sink that writes down what it is told, with its channel, and that the types are right."""

    def __init__(self, calls: list[Call], channel: int) -> None:
        self.calls = calls
        self.channel = channel

    def deliver(self, delivery: Delivered) -> None:
        it = delivery
        told = (it.consumer_tag, it.tag, it.redelivered, it.exchange, it.key, it.properties, it.body)
        assert [type(part) for part in told] == [str, int, bool, str, str, bytes, bytes]
        self.calls.append(("deliver", self.channel, *told))

    def returned(self, *told: object) -> None:
        assert [type(part) for part in told] == [int, str, str, str, bytes, bytes]
        self.calls.append(("returned", self.channel, *told))

    def confirmed(self, tag: int, multiple: bool) -> None:
        assert (type(tag), type(multiple)) == (int, bool)
        self.calls.append(("confirmed", self.channel, tag, multiple))

    def refused(self, tag: int, multiple: bool) -> None:
        assert (type(tag), type(multiple)) == (int, bool)
        self.calls.append(("refused", self.channel, tag, multiple))


def splitter(frame_max: int = FRAME_MAX) -> tuple[Splitter, list[Call]]:
    calls: list[Call] = []
    made = Splitter(frame_max)
    made.channels = {channel: Recorder(calls, channel) for channel in (OURS, HERS)}
    return made, calls


def contents(channel: int, properties: Basic.Properties, body: bytes, frame_max: int) -> bytes:
    """A content header and body frames, as pamqp builds them."""
    step = frame_max - 8
    built = [frame.marshal(ContentHeader(0, len(body), properties), channel)]
    built += [frame.marshal(ContentBody(body[at : at + step]), channel) for at in range(0, len(body), step)]
    return b"".join(built)


def raw(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame of anything."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


# -- strategies ----------------------------------------------------------------------------------------------------

SHORT = st.text(st.characters(codec="utf-8"), max_size=8)
NAME = st.from_regex(r"[a-zA-Z0-9._:-]{0,10}", fullmatch=True)
TAG = st.integers(0, 2**63 - 1)
BODIES = st.binary(max_size=3 * FRAME_MAX) | st.sampled_from([b"", b"x" * 56, b"\xce" * 57, b"x" * 112])
HEADERS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    SHORT, st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), SHORT, st.none()), max_size=2
)


class Stream:
    """Bytes from a server, with what is to be told of them and what is to be passed on."""

    def __init__(self, data: bytes, *calls: Call, other: bool = False) -> None:
        self.data = data
        self.calls = list(calls)
        self.passed = data if other else b""


def joined(streams: list[Stream]) -> Stream:
    whole = Stream(b"".join(one.data for one in streams), *(call for one in streams for call in one.calls))
    whole.passed = b"".join(one.passed for one in streams)
    return whole


@st.composite
def messages(draw: st.DrawFn) -> Stream:
    channel, exchange, key, body = draw(st.sampled_from([OURS, HERS, FOREIGN])), draw(NAME), draw(SHORT), draw(BODIES)
    properties = Basic.Properties(
        content_type=draw(st.none() | NAME), delivery_mode=2, message_id=draw(st.none() | SHORT), headers=draw(HEADERS)
    )
    content = contents(channel, properties, body, FRAME_MAX + 200 if draw(st.booleans()) else FRAME_MAX)
    method: Frame
    call: Call
    if draw(st.booleans()):
        tag, consumer, again = draw(TAG), draw(SHORT), draw(st.booleans())
        method = Basic.Deliver(consumer, tag, again, exchange, key)
        call = ("deliver", channel, consumer, tag, again, exchange, key, properties.marshal(), body)
    else:
        code, text = draw(st.integers(0, 2**15 - 1)), draw(SHORT)
        method = Basic.Return(code, text, exchange, key)
        call = ("returned", channel, code, text, exchange, key, properties.marshal(), body)
    data = frame.marshal(method, channel) + content
    return Stream(data, other=True) if channel == FOREIGN else Stream(data, call)


@st.composite
def answers(draw: st.DrawFn) -> Stream:
    channel, tag, multiple = draw(st.sampled_from([OURS, HERS, FOREIGN])), draw(TAG), draw(st.booleans())
    ack = draw(st.booleans())
    data = frame.marshal(Basic.Ack(tag, multiple) if ack else Basic.Nack(tag, multiple), channel)
    call: Call = ("confirmed" if ack else "refused", channel, tag, multiple)
    return Stream(data, other=True) if channel == FOREIGN else Stream(data, call)


OTHERS = st.sampled_from(
    [
        frame.marshal(Heartbeat(), 0),
        frame.marshal(Connection.Tune(10, 131072, 10), 0),
        frame.marshal(Connection.Blocked("memory"), 0),
        frame.marshal(Channel.Close(406, "no", 60, 40), OURS),
        frame.marshal(Basic.Cancel("packing.1"), OURS),
        frame.marshal(Basic.QosOk(), HERS),
        frame.marshal(Queue.DeclareOk("packing", 1, 2), HERS),
        frame.marshal(ContentBody(b"body"), FOREIGN),
        raw(8, OURS, b""),
        raw(77, FOREIGN, b"?"),
    ]
).map(lambda data: Stream(data, other=True))

STREAMS = st.lists(messages() | answers() | OTHERS, max_size=8).map(joined)
PIECES = st.lists(st.integers(1, 200), min_size=1, max_size=20)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, over and over."""
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def feed_all(reader: Splitter, pieces: Iterator[bytes]) -> bytes:
    return b"".join(reader.feed(piece) for piece in pieces)


# -- reading what pamqp builds -------------------------------------------------------------------------------------


@given(stream=STREAMS, sizes=PIECES)
def test_what_pamqp_builds_is_read_the_same_however_it_is_cut(stream: Stream, sizes: list[int]) -> None:
    reader, calls = splitter(FRAME_MAX + 200)
    assert feed_all(reader, cut(stream.data, sizes)) == stream.passed
    assert calls == stream.calls


@given(stream=STREAMS)
def test_what_pamqp_builds_is_read_the_same_at_once(stream: Stream) -> None:
    reader, calls = splitter(FRAME_MAX + 200)
    assert reader.feed(stream.data) == stream.passed
    assert calls == stream.calls


@given(stream=STREAMS, sizes=PIECES)
def test_what_is_passed_on_are_whole_frames(stream: Stream, sizes: list[int]) -> None:
    reader, _ = splitter(FRAME_MAX + 200)
    for piece in cut(stream.data, sizes):
        passed = reader.feed(piece)
        while passed:
            _, _, size = struct.unpack_from(">BHI", passed)
            assert passed[size + 7] == FRAME_END
            passed = passed[size + 8 :]


def short_stream() -> Stream:
    properties = Basic.Properties(content_type="a/b", headers={"n": 1}, delivery_mode=2)
    there = properties.marshal()
    body = b"b" * (2 * FRAME_MAX)
    return joined(
        [
            Stream(frame.marshal(Heartbeat(), 0), other=True),
            Stream(
                frame.marshal(Basic.Deliver("tag", 5, True, "events", "order.placed"), OURS)
                + contents(OURS, properties, b"one", FRAME_MAX),
                ("deliver", OURS, "tag", 5, True, "events", "order.placed", there, b"one"),
            ),
            Stream(
                frame.marshal(Basic.Return(312, "NO_ROUTE", "events", "x"), HERS)
                + contents(HERS, properties, body, FRAME_MAX),
                ("returned", HERS, 312, "NO_ROUTE", "events", "x", there, body),
            ),
            Stream(frame.marshal(Basic.Ack(9, True), HERS), ("confirmed", HERS, 9, True)),
            Stream(
                frame.marshal(Basic.Deliver("tag", 6, False, "", "packing"), OURS)
                + contents(OURS, Basic.Properties(), b"", FRAME_MAX),
                ("deliver", OURS, "tag", 6, False, "", "packing", b"\0\0", b""),
            ),
            Stream(frame.marshal(Basic.CancelOk("tag"), OURS), other=True),
            Stream(frame.marshal(Basic.Nack(10, False), OURS), ("refused", OURS, 10, False)),
        ]
    )


def test_a_stream_is_cut_at_every_byte() -> None:
    stream = short_stream()
    for at in range(len(stream.data) + 1):
        reader, calls = splitter()
        assert reader.feed(stream.data[:at]) + reader.feed(stream.data[at:]) == stream.passed
        assert calls == stream.calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
def test_a_stream_comes_in_small_pieces(size: int) -> None:
    stream = short_stream()
    reader, calls = splitter()
    assert feed_all(reader, cut(stream.data, [size])) == stream.passed
    assert calls == stream.calls


def test_it_knows_whether_what_came_ended_a_frame_of_what_had_begun() -> None:
    reader, _ = splitter()
    method = frame.marshal(Basic.Deliver("tag", 1, False, "events", "k"), OURS)
    parts = [*split_frames(method + contents(OURS, Basic.Properties(), b"x" * 150, FRAME_MAX))]
    beat = frame.marshal(Heartbeat(), 0)
    for part in parts:
        reader.feed(part[:5])
        assert not reader.moved
        reader.feed(part[5:7])
        assert not reader.moved
        reader.feed(part[7:])
        assert reader.moved
        reader.feed(beat)
        assert reader.moved == (part is parts[-1]), "a heartbeat brings no message further"


def test_nothing_comes() -> None:
    reader, calls = splitter()
    assert (reader.feed(b""), reader.feed(b""), calls) == (b"", b"", [])


def test_what_is_all_others_is_passed_on_uncopied() -> None:
    reader, _ = splitter()
    data = frame.marshal(Basic.QosOk(), OURS) * 3
    assert reader.feed(data) is data


def test_contents_on_several_channels_come_interleaved() -> None:
    streams = []
    for channel in (OURS, HERS):
        method = frame.marshal(Basic.Deliver("tag", channel, False, "events", "k"), channel)
        streams.append(method + contents(channel, Basic.Properties(), bytes([channel]) * 150, FRAME_MAX))
    ours, hers = (list(split_frames(one)) for one in streams)
    reader, calls = splitter()
    mixed = b"".join(part for pair in zip(ours, hers, strict=True) for part in pair)
    beat = frame.marshal(Heartbeat(), 0)
    assert reader.feed(mixed[:100]) + reader.feed(mixed[100:] + beat) == beat
    assert [call[-1] for call in calls] == [bytes([OURS]) * 150, bytes([HERS]) * 150]


def split_frames(data: bytes) -> Iterator[bytes]:
    while data:
        _, _, size = struct.unpack_from(">BHI", data)
        yield data[: size + 8]
        data = data[size + 8 :]


def test_a_server_of_another_version_answers_with_its_protocol_header() -> None:
    header = ProtocolHeader().marshal()
    for at in range(9):
        reader, _ = splitter()
        assert reader.feed(header[:at]) + reader.feed(header[at:]) == header
    reader, _ = splitter()
    reader.feed(frames.HEARTBEAT)
    with pytest.raises(FrameError):
        reader.feed(header)  # which has its place at the beginning only


def test_tags_use_all_of_their_bits() -> None:
    reader, calls = splitter()
    reader.feed(frames.ack(OURS, 2**64 - 1, True))
    assert calls == [("confirmed", OURS, 2**64 - 1, True)]


def test_names_that_are_not_utf_8_and_bits_that_mean_nothing() -> None:
    method = struct.pack(">IB1sQB", frames.DELIVER, 1, b"\xff", 1, 0xFF) + b"\x01e\x02k\xfe"
    reader, calls = splitter()
    reader.feed(raw(1, OURS, method) + contents(OURS, Basic.Properties(), b"b", FRAME_MAX))
    assert calls == [("deliver", OURS, "\udcff", 1, True, "e", "k\udcfe", b"\0\0", b"b")]


def test_many_different_keys_are_not_remembered_for_ever() -> None:
    reader, calls = splitter()
    for number in range(3000):
        reader.feed(frame.marshal(Basic.Deliver("tag", 1, False, "e", f"k{number}"), OURS))
        reader.feed(contents(OURS, Basic.Properties(), b"", FRAME_MAX))
    assert calls[-1][6] == "k2999"
    for cache in (frames._names, frames._text, frames._constant, frames._present, frames.publish):
        assert cache.cache_info().maxsize in range(1, 1025)


# -- registering ---------------------------------------------------------------------------------------------------


def test_what_remains_of_a_content_is_dropped_when_its_channel_is_unregistered() -> None:
    whole = list(split_frames(short_stream().data))[4:9]  # Return, header, three body frames
    for at in range(1, 5):
        reader, calls = splitter()
        assert reader.feed(b"".join(whole[:at])) == b""
        del reader.channels[HERS]
        assert reader.feed(b"".join(whole[at:])) == b""
        assert calls == []
        after = frame.marshal(Basic.Ack(1, False), HERS)
        assert reader.feed(after) == after
        assert not reader._contents


def test_a_content_is_not_for_the_sink_registered_after_it_began() -> None:
    whole = list(split_frames(short_stream().data))[4:9]
    reader, calls = splitter()
    reader.feed(b"".join(whole[:2]))
    reader.channels[HERS] = Recorder(calls, HERS)
    reader.feed(b"".join(whole[2:]))
    assert calls == []


@pytest.mark.parametrize("registered", [True, False])
def test_a_closed_channel_ends_a_content(registered: bool) -> None:
    whole = list(split_frames(short_stream().data))[4:9]
    close = frame.marshal(Channel.Close(541, "oh", 0, 0), HERS)
    reader, calls = splitter()
    reader.feed(b"".join(whole[:3]))
    if not registered:
        del reader.channels[HERS]
    assert reader.feed(close) == close
    assert (calls, reader._contents) == ([], {})


def test_a_sink_may_unregister_while_it_is_called() -> None:
    reader, calls = splitter()

    class Once(Recorder):
        def confirmed(self, tag: int, multiple: bool) -> None:
            super().confirmed(tag, multiple)
            del reader.channels[OURS]

    reader.channels[OURS] = Once(calls, OURS)
    ack = frame.marshal(Basic.Ack(1, False), OURS)
    assert reader.feed(ack * 3) == ack * 2
    assert len(calls) == 1


# -- rubbish -------------------------------------------------------------------------------------------------------

DELIVER = frame.marshal(Basic.Deliver("tag", 1, False, "events", "k"), OURS)
HEADER = frame.marshal(ContentHeader(0, 10, Basic.Properties()), OURS)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frame.marshal(Heartbeat(), 0)[:-1] + b"\0", "ends in 0x00"),
        (struct.pack(">BHI", 1, 0, FRAME_MAX - 7) + b"x", "57 bytes of payload on channel 0: 56"),
        (raw(4, OURS, b"x"), "unknown type 4"),
        (HEADER, "header on channel 1 where none is due"),
        (raw(3, OURS, b"x"), "body on channel 1 where none is due"),
        (DELIVER + raw(3, OURS, b"x"), "body on channel 1 where none is due"),
        (DELIVER + HEADER + HEADER, "header on channel 1 where none is due"),
        (DELIVER + DELIVER, "method on channel 1 where content is due"),
        (DELIVER + raw(2, OURS, struct.pack(">HHQH", 50, 0, 1, 0)), "class 50, not 60"),
        (DELIVER + raw(2, OURS, struct.pack(">HHQH", 60, 0, 2**29 + 1, 0)), "536870913 bytes announced"),
        (DELIVER + raw(2, OURS, b"x" * 13), "content header of 13 bytes"),
        (DELIVER + raw(2, OURS, struct.pack(">HHQH", 50, 0, 9, 0)) + raw(3, OURS, bytes(9)), "class 50, not 60"),
        (DELIVER + raw(2, OURS, struct.pack(">HHQx", 60, 0, 9)) + raw(3, OURS, bytes(9)), "content header of 13 bytes"),
        (DELIVER + HEADER + raw(3, OURS, b"x" * 11), "longer than the 10 bytes"),
        (DELIVER + HEADER + raw(3, OURS, b"x" * 9) + raw(3, OURS, b"xx"), "longer than the 10 bytes"),
        (DELIVER + HEADER + raw(3, OURS, b"x" * 9) + raw(3, OURS, b"x" * 10), "longer than the 10 bytes"),
        (DELIVER + HEADER + raw(3, OURS, b"x" * 10)[:-1] + b"\0", "ends in 0x00"),
        (raw(1, OURS, b"\0\x3c\0"), "method of 3 bytes"),
        (raw(1, OURS, struct.pack(">I", frames.ACK) + bytes(8)), "ack of 12 bytes"),
        (raw(1, OURS, struct.pack(">I", frames.NACK) + bytes(10)), "ack of 14 bytes"),
        (raw(1, OURS, struct.pack(">I", frames.DELIVER)), "names have 0 bytes"),
        (raw(1, OURS, struct.pack(">IB", frames.DELIVER, 255)), "names have 0 bytes"),
        (raw(1, OURS, struct.pack(">IBQBBB", frames.DELIVER, 0, 1, 0, 0, 1)), "names have 2 bytes, where 3 are due"),
        (raw(1, OURS, struct.pack(">IBQBBBB", frames.DELIVER, 0, 1, 0, 0, 0, 0)), "names have 3 bytes, where 2"),
        (raw(1, OURS, struct.pack(">IB", frames.RETURN, 1)), "names have 0 bytes"),
    ],
)
def test_rubbish_is_called_so_and_then_nothing_is_read_any_more(data: bytes, why: str) -> None:
    for sizes in ([1000], [1]):
        reader, calls = splitter()
        with pytest.raises(FrameError, match=why):
            feed_all(reader, cut(data, sizes))
        assert not reader._kept
        assert not reader._contents
        with pytest.raises(FrameError, match=why):
            reader.feed(frames.ack(OURS, 1, False))
        assert calls == []


def test_a_sink_that_raises_ends_it() -> None:
    class Broken(Recorder):
        def confirmed(self, tag: int, multiple: bool) -> None:
            raise KeyError(tag)

    reader, calls = splitter()
    reader.channels[OURS] = Broken(calls, OURS)
    with pytest.raises(KeyError):
        reader.feed(frames.ack(OURS, 1, False))
    with pytest.raises(FrameError, match="a sink failed: KeyError: 1"):
        reader.feed(b"")


def feed_anything(data: bytes, sizes: list[int]) -> None:
    """Feed it; the sinks check what they are told. Nothing but FrameError may come, and nothing may pile up."""
    reader, calls = splitter(FRAME_MAX + 200)
    try:
        for piece in cut(data, sizes):
            reader.feed(piece)
            assert len(reader._kept) < reader.frame_max
            assert set(reader._contents) <= {OURS, HERS}
            assert all(len(one.body) <= max(one.size, 0) for one in reader._contents.values())
    except FrameError as wrong:
        assert str(wrong)  # noqa: PT017  (it need not come)
    assert len(calls) <= len(data) / 21


@given(data=st.binary(max_size=500), sizes=PIECES)
def test_random_bytes(data: bytes, sizes: list[int]) -> None:
    feed_anything(data, sizes)


@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 1, 2, 3, 4, 8]),
            st.sampled_from([0, OURS, HERS]),
            st.sampled_from(
                [b"", *(struct.pack(">I", method) for method in frames.OURS), struct.pack(">HHQH", 60, 0, 5, 0)]
            ),
            st.binary(max_size=30),
        ),
        max_size=6,
    ),
    sizes=PIECES,
)
def test_random_frames(parts: list[tuple[int, int, bytes, bytes]], sizes: list[int]) -> None:
    feed_anything(b"".join(raw(kind, channel, start + rest) for kind, channel, start, rest in parts), sizes)


@given(
    stream=STREAMS,
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=4),
    sizes=PIECES,
)
def test_mutated_streams(stream: Stream, edits: list[tuple[int, int, int]], sizes: list[int]) -> None:
    data = bytearray(stream.data)
    for where, remove, value in edits:
        at = where % (len(data) + 1)
        data[at : at + remove] = bytes([value])
    feed_anything(bytes(data), sizes)


def test_what_is_kept_is_one_frame_and_the_body_announced() -> None:
    reader, calls = splitter(ROOMY)
    most = b"x" * (ROOMY - 8)
    reader.feed(DELIVER + raw(2, OURS, struct.pack(">HHQH", 60, 0, 100 * len(most), 0)))
    for number in range(99):
        reader.feed(raw(3, OURS, most))
        reader.feed(raw(3, OURS, b""))  # of which there might be any number
        assert len(reader._contents[OURS].body) == (number + 1) * len(most)
    last = raw(3, OURS, most)
    for byte in last[:-1]:
        reader.feed(bytes([byte]))
    assert len(reader._kept) == ROOMY - 1
    assert reader._need == ROOMY  # until then, nothing is looked at or copied again
    reader.feed(last[-1:])
    assert calls[0][-1] == most * 100
    assert not reader._kept
    assert not reader._contents


# -- building ------------------------------------------------------------------------------------------------------

CHANNELS = st.integers(1, 65_535)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def read(data: bytes) -> list[tuple[int, Any]]:
    """The channel and what is in it, for each frame, as pamqp reads them."""
    found = []
    while data:
        size, channel, it = frame.unmarshal(data)
        found.append((channel, it))
        data = data[size:]
    return found


@given(channel=CHANNELS, exchange=NAME, key=TEXT, mandatory=st.booleans())
def test_a_publish(channel: int, exchange: str, key: str, mandatory: bool) -> None:
    built = frames.publish(channel, exchange, key, mandatory=mandatory)
    assert built == frame.marshal(Basic.Publish(0, exchange, key, mandatory), channel)


@given(channel=CHANNELS, tag=TAG, multiple=st.booleans(), requeue=st.booleans())
def test_settling(channel: int, tag: int, multiple: bool, requeue: bool) -> None:
    assert frames.ack(channel, tag, multiple) == frame.marshal(Basic.Ack(tag, multiple), channel)
    assert frames.reject(channel, tag, requeue=requeue) == frame.marshal(Basic.Reject(tag, requeue), channel)
    built = frames.nack(channel, tag, multiple=multiple, requeue=requeue)
    assert built == frame.marshal(Basic.Nack(tag, multiple, requeue), channel)


def test_a_heartbeat() -> None:
    assert frame.marshal(Heartbeat(), 0) == frames.HEARTBEAT


@st.composite
def properties(draw: st.DrawFn) -> dict[str, Any]:
    text = st.none() | TEXT.filter(bool)  # pamqp leaves an empty one out
    return {
        "content_type": draw(text),
        "correlation_id": draw(text),
        "message_id": draw(text),
        "timestamp": draw(st.none() | st.integers(0, 2**32 - 1)),
        "type": draw(text),
        "app_id": draw(text),
        "headers": draw(st.none() | HEADERS),
    }


def as_pamqp(given_properties: dict[str, Any]) -> Basic.Properties:
    its = dict(given_properties)
    its["message_type"] = its.pop("type")
    its["headers"] = its["headers"] or None
    if its["timestamp"] is not None:
        its["timestamp"] = datetime.fromtimestamp(its["timestamp"], UTC)
    return Basic.Properties(delivery_mode=2, **its)


def present(its: Basic.Properties) -> dict[str, Any]:
    """Those there are. pamqp's cluster id is never None."""
    return {name: value for name, value in its if value is not None and name != "cluster_id"}


@given(its=properties())
def test_properties(its: dict[str, Any]) -> None:
    built = frames.properties(**its)
    assert built == as_pamqp(its).marshal()
    assert decode_properties(built) == present(as_pamqp(its))


@given(
    channel=CHANNELS,
    its=properties(),
    body=st.binary(max_size=3 * ROOMY) | st.sampled_from([b"", b"x" * (ROOMY - 8), b"x" * (ROOMY - 7)]),
)
def test_content(channel: int, its: dict[str, Any], body: bytes) -> None:
    built = frames.content(channel, frames.properties(**its), body, ROOMY)
    assert built == contents(channel, as_pamqp(its), body, ROOMY)
    found = read(built)
    assert {on for on, _ in found} == {channel}
    assert (found[0][1].body_size, found[0][1].properties) == (len(body), as_pamqp(its))
    assert b"".join(part.value for _, part in found[1:]) == body


def test_empty_texts_are_sent_and_none_is_not() -> None:
    assert frames.properties() == Basic.Properties(delivery_mode=2).marshal()
    there = decode_properties(frames.properties(content_type="", message_id=""))
    assert there == {"content_type": "", "delivery_mode": 2, "message_id": ""}


def test_all_headers_that_a_message_may_have() -> None:
    headers = {"b": b"\xff", "f": 1.5, "n": None, "t": AT, "big": 2**63 - 1, "yes": True, "s": "ü" * 300}
    assert decode_properties(frames.properties(headers=headers))["headers"] == headers


@pytest.mark.parametrize("name", ["content_type", "correlation_id", "message_id", "type", "app_id"])
def test_a_text_that_is_too_long(name: str) -> None:
    def built(text: str) -> bytes:
        return frames.properties(**cast("dict[str, Any]", {name: text}))

    decode_properties(built("ü" * 127 + "x"))
    with pytest.raises(ValueError, match="256 bytes: 255 is the most"):
        built("ü" * 128)
    with pytest.raises(ValueError, match="surrogates"):
        built("\ud800")


def test_names_that_are_too_long() -> None:
    with pytest.raises(ValueError, match="exchange of 256 bytes"):
        frames.publish(1, "x" * 256, "k", mandatory=True)
    with pytest.raises(ValueError, match="routing key of 256 bytes"):
        frames.publish(1, "x", "ü" * 128, mandatory=True)


@pytest.mark.parametrize("timestamp", [-1, 2**64])
def test_what_is_not_a_timestamp(timestamp: int) -> None:
    with pytest.raises(ValueError, match="is not a timestamp"):
        frames.properties(timestamp=timestamp)


@pytest.mark.parametrize("value", [2**63, 1e39, object(), "\ud800", {"deep": object()}, datetime(1, 1, 1, tzinfo=UTC)])
def test_headers_that_cannot_be_sent(value: object) -> None:
    with pytest.raises(ValueError, match="headers that cannot be sent"):
        frames.properties(headers={"h": value})


def test_properties_that_do_not_fit_into_a_frame() -> None:
    its = frames.properties(headers={"h": "x" * ROOMY})
    with pytest.raises(ValueError, match="4076 is the most"):
        frames.content(1, its, b"", ROOMY)


# -- decoding properties -------------------------------------------------------------------------------------------


def with_headers(table: bytes) -> bytes:
    return b"\x20\x00" + struct.pack(">I", len(table)) + table


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return with_headers(table)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x00\x40" + b"\xff" * 8,
        with_headers(b"\x01aT" + struct.pack(">Q", 2**63)),
        b"\x00\x80\x02\xff\xfe",
        b"\x80\x00\x01\xff",
        with_headers(b"\x02\xff\xfeV"),
        with_headers(b"\x01a?"),
        with_headers(b"\x01aD\xff\xff\xff\xff\xff" * 3 + b"\x09"),
        nested(5000),
        b"\x00\x01" * 60_000,
        b"\x80\x00\x05abc",
        b"\x80\x00",
        b"\x10\x00",
        b"\x20\x00\x00\x00\x00\x05",
        b"\x00",
        b"",
    ],
    ids=range(15),
)
def test_properties_that_anybody_may_send(hostile: bytes) -> None:
    with pytest.raises(ValueError, match="its properties cannot be decoded: ") as refused:
        decode_properties(hostile)
    assert type(refused.value) is ValueError
    assert len(str(refused.value)) < 300


@given(its=st.binary(max_size=80))
def test_random_properties(its: bytes) -> None:
    try:
        decode_properties(its)
    except ValueError as refused:
        assert type(refused) is ValueError  # noqa: PT017  (it need not come)


@given(flags=st.integers(0, 0x3FFF).map(lambda bits: bits << 2), rest=st.binary(max_size=120))
def test_properties_are_decoded_as_pamqp_does_or_refused(flags: int, rest: bytes) -> None:
    its = struct.pack(">H", flags) + rest
    try:
        decoded = decode_properties(its)
    except ValueError:
        return
    header = ContentHeader()
    header.unmarshal(bytes(12) + its)
    its_own = {name: value for name, value in header.properties if name in decoded}
    assert repr(decoded) == repr(its_own)  # not a number equals itself as text
    assert all(name in decoded or not value for name, value in header.properties)


NUMBER = b"\x0fx-stream-offsetl"
TEXTS = st.binary(max_size=30) | st.just(NUMBER + bytes(8))
FIELDS = anything.values(anything.SIZES | anything.DECIMAL) | TEXTS.map(lambda text: b"S" + anything.long(text))


@given(
    before=st.dictionaries(TEXTS, FIELDS, max_size=4),
    number=st.integers(0, 2**63 - 1),
    after=st.dictionaries(TEXTS, FIELDS, max_size=4),
    kind=st.none() | TEXTS,
    message_id=TEXTS,
)
def test_a_streams_number_is_found_among_what_anybody_may_send(
    before: dict[bytes, bytes], number: int, after: dict[bytes, bytes], kind: bytes | None, message_id: bytes
) -> None:
    its, others = (
        NUMBER + struct.pack(">Q", number),
        [b"".join(anything.short(name) + value for name, value in fields.items()) for fields in (before, after)],
    )
    flags = 0x2080 | (0 if kind is None else 0x8000)
    first = b"" if kind is None else anything.short(kind)
    table = anything.long(its.join(others))
    assert frames.stream_number(struct.pack(">H", flags) + first + table + anything.short(message_id)) == number


@given(its=st.binary(max_size=80))
def test_what_comes_out_of_a_queue_has_no_number(its: bytes) -> None:
    assert frames.stream_number(its) is None
    assert frames.stream_number(frames.properties(content_type="a", headers={"b": its.hex()})) is None


def test_all_properties_are_decoded() -> None:
    its = Basic.Properties("a", "b", {"c": ["d", {"e": 1}]}, 1, 9, "f", "g", "1000", "h", AT, "i", "j", "k")
    assert decode_properties(its.marshal()) == present(its)
