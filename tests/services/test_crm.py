"""CRM: customer records that no order of arrival can corrupt, and one follow-up e-mail for each order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from broker import Context, DatabaseUnusable, Event
from broker.testing import Harness
from services import crm
from services.contracts import CustomerDetailsChanged, NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import Database, open_database
from services.crm import follow_up, records, sender
from services.crm.records import CustomerRecord
from services.crm.sender import State
from services.crm.store import Base, Customer
from tests.services import making
from tests.services.commands import Commands
from tests.waiting import counted, until

ADA = making.customer()
AT = datetime(2025, 6, 1, 12, tzinfo=UTC)


async def record_of(customer_id: UUID) -> CustomerRecord | None:
    async with open_database(crm.Settings().database, Base.metadata) as database:
        return await records.find(database, customer_id)


def emails(data: Path) -> dict[str, EmailMessage]:
    """What lies in the outbox, by order id."""
    read = {path: message_from_bytes(path.read_bytes(), policy=policy.SMTP) for path in (data / "outbox").glob("*.eml")}
    return {path.stem: message for path, message in read.items()}


async def come(customer_id: UUID) -> list[tuple[State, str | None]]:
    """How far the e-mails to a customer have come."""
    record = await record_of(customer_id)
    assert record is not None
    return [(order.follow_up.state, order.follow_up.reason) for order in record.orders]


async def all_come(customer_id: UUID, state: State) -> None:
    """Wait until all e-mails to a customer have come so far."""

    async def have() -> bool:
        return {found for found, _ in await come(customer_id)} == {state}

    await until(have)


async def have_reasons(customer_id: UUID) -> list[str]:
    """Wait until there is a reason for each e-mail to a customer why it is not sent."""

    async def reasons() -> list[str]:
        found = [reason for _, reason in await come(customer_id) if reason]
        return found if len(found) == len(await come(customer_id)) else []

    return await until(reasons)


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    content: str = body.get_content()
    return content


@pytest.fixture
async def database(data: Path) -> AsyncIterator[Database]:
    async with open_database(crm.Settings().database, Base.metadata) as database:
        yield database


# Records


@pytest.mark.parametrize("steps", [*permutations(["customer", "placed", "packed", "dispatched"])])
async def test_the_record_does_not_depend_on_the_order_of_arrival(steps: tuple[str, ...], data: Path) -> None:
    order = making.placed(ADA.customer_id)
    events: dict[str, Event] = {
        "customer": ADA,
        "placed": order,
        "packed": OrderPacked(order_id=order.order_id),
        "dispatched": OrderDispatched(order_id=order.order_id),
    }
    async with Harness(crm.service) as shop:
        for step in steps:
            await shop.publish(events[step])
            await shop.settled()
        await shop.advance(seconds=1)
        assert shop.dead("crm") == []
        await all_come(ADA.customer_id, State.SENT)
    record = await record_of(ADA.customer_id)
    assert record is not None
    [known] = record.orders
    assert known.status == "dispatched"
    assert [reached.status for reached in known.history] == ["placed", "packed", "dispatched"]
    assert (known.lines, known.total) == (order.lines, order.total)
    assert list(emails(data)) == [str(order.order_id)]


@settings(max_examples=10, deadline=None)
@given(revisions=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_a_customer_never_goes_back(revisions: list[int]) -> None:
    customer_id = uuid4()

    async def arrive() -> CustomerRecord | None:
        async with Harness(crm.service) as shop:
            for revision in revisions:
                await shop.publish(making.customer(customer_id, revision, name=f"Ada {revision}"))
                await shop.settled()
        return await record_of(customer_id)

    record = asyncio.run(arrive())
    assert record is not None
    assert (record.revision, record.name) == (max(revisions), f"Ada {max(revisions)}")


async def test_an_order_of_an_unknown_customer_comes_back_and_is_written_about_once(data: Path) -> None:
    order = making.placed(ADA.customer_id)
    async with Harness(crm.service) as shop:
        await shop.publish(order)
        await shop.settled()
        assert "CustomerNotKnownYet" in shop.story
        assert emails(data) == {}
        await shop.publish(ADA)
        await shop.settled()
        await shop.advance(seconds=1)
        await shop.advance(hours=1)
        assert shop.dead("crm") == []
        await all_come(ADA.customer_id, State.SENT)
    assert list(emails(data)) == [str(order.order_id)]


async def test_an_order_of_a_customer_who_never_comes_is_set_aside_with_the_reason(data: Path) -> None:
    order = making.placed(ADA.customer_id)
    async with Harness(crm.service) as shop:
        await shop.publish(order)
        await shop.settled()
        await shop.advance(hours=1)
        [letter] = shop.dead("crm")
        assert letter.reason.startswith(f"CustomerNotKnownYet: Order {order.order_id} is of customer {ADA.customer_id}")
        assert letter.attempt == 5
    assert emails(data) == {}


# The e-mail


def composed(order: NewOrderPlaced, name: str = "Ada Lovelace", email: str = "ada@example.com") -> EmailMessage:
    customer = Customer(customer_id=order.customer_id, revision=1, name=name, email=email)
    written = follow_up.compose(order, customer, sender="shop@example.com", date=AT).as_bytes()
    assert written.isascii()
    return message_from_bytes(written, policy=policy.SMTP)


def test_the_email_is_text_and_html_for_one_customer_about_one_order() -> None:
    order = making.placed()
    message = composed(order)
    assert message.get_content_type() == "multipart/alternative"
    assert [each.get_content_type() for each in message.iter_parts()] == ["text/plain", "text/html"]
    assert (message["To"], message["From"]) == ("Ada Lovelace <ada@example.com>", "shop@example.com")
    assert (message["Subject"], message["Message-ID"]) == (
        f"Your order {order.order_id}",
        f"<{order.order_id}@example.com>",
    )
    assert message["Date"].datetime == AT
    for kind in ("plain", "html"):
        text = part(message, kind)
        for said in ("Dear Ada Lovelace,", "Lamp", "19.90 EUR", "39.80 EUR", str(order.order_id)):
            assert said in text


def test_the_same_order_gives_the_same_bytes() -> None:
    order = making.placed()
    assert composed(order).as_bytes() == composed(order).as_bytes()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


HOSTILE = [
    "Ada\r\nBcc: eve@example.com",
    "Ada\nSubject: You have won",
    "Ada\r\n\r\n<h1>You have won</h1>",
    '<script>alert("1")</script>',
    "</p></body><img src=x onerror=alert(1)>",
    '"><a href="https://eve.example">click</a>',
    "{{ 7 * 7 }} {% raw %} {{ order_id }}",
    '"Ada" <eve@example.com>, ',
    "=?utf-8?q?Ada=0D=0ABcc:_eve=40example.com?=",
    "Ada\u2028Bcc: eve@example.com\u0085x\x0bBcc: y",
    "\u202eadA \x1b[31m",
    "Ádá Łovelace 🌷 " + "x" * 180,
    "李" * 200,
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_is_only_a_name(hostile: str) -> None:
    _check_harmless(hostile)


@settings(deadline=None)
@given(hostile=st.one_of(st.text(min_size=1), st.text(alphabet='=?utf-8qb_0DA \r\n<>",@', min_size=1)))
def test_no_name_at_all_adds_a_header_a_recipient_or_a_tag(hostile: str) -> None:
    try:
        making.customer(name=hostile)
    except ValidationError:
        return
    _check_harmless(hostile)


def _check_harmless(hostile: str) -> None:
    order = making.placed(item_name=hostile)
    plain, message = composed(order.model_copy(update={"lines": making.placed().lines})), composed(order, name=hostile)
    assert message.keys() == plain.keys()
    assert [address.addr_spec for address in message["To"].addresses] == ["ada@example.com"]
    assert not [*message.defects, *message["To"].defects]
    assert message["Subject"] == f"Your order {order.order_id}"
    ordinary, text = Tags(part(plain, "html")), Tags(part(message, "html"))
    assert (text.tags, text.attributes) == (ordinary.tags, ordinary.attributes)
    assert len(part(message, "plain").splitlines()) == len(part(plain, "plain").splitlines())


async def test_duplicates_of_an_order_make_one_email(data: Path) -> None:
    order = making.placed(ADA.customer_id)
    async with Harness(crm.service) as shop:
        await shop.publish(ADA)
        await shop.settled()
        for _ in range(20):
            await shop.publish(order)
        await shop.settled()
        await all_come(ADA.customer_id, State.SENT)
        first = (data / "outbox" / f"{order.order_id}.eml").read_bytes()
        await shop.publish(making.customer(ADA.customer_id, 2, name="Countess Lovelace"))
        await shop.settled()
        await shop.publish(order)
        await shop.settled()
    assert list(emails(data)) == [str(order.order_id)]
    assert (data / "outbox" / f"{order.order_id}.eml").read_bytes() == first


async def test_an_outbox_that_fails_for_a_while_loses_no_email(data: Path) -> None:
    orders = [making.placed(ADA.customer_id) for _ in range(3)]
    async with Harness(crm.service) as shop:
        await shop.publish(ADA)
        await shop.settled()
        (data / "outbox").rmdir()
        (data / "outbox").touch()
        for order in orders:
            await shop.publish(order)
        await shop.settled()
        await have_reasons(ADA.customer_id)
        (data / "outbox").unlink()
        (data / "outbox").mkdir()
        await all_come(ADA.customer_id, State.SENT)
    assert set(emails(data)) == {str(order.order_id) for order in orders}


async def test_an_email_that_was_stored_is_written_by_the_next_process(data: Path) -> None:
    order = making.placed(ADA.customer_id)
    async with open_database(crm.Settings().database, Base.metadata) as database:
        await take(database, ADA, order)
    async with Harness(crm.service):
        await all_come(ADA.customer_id, State.SENT)
    assert list(emails(data)) == [str(order.order_id)]


async def take(database: Database, *events: Event) -> None:
    """Handle events as they arrive; nobody sends e-mails."""
    async with database.write() as session:
        context = Context(resources=crm.Settings(), transaction=session)
        for event in events:
            if isinstance(event, NewOrderPlaced):
                await crm.record_and_write(event, context)
            elif isinstance(event, CustomerDetailsChanged):
                await crm.keep_details(event, context)


@pytest.mark.parametrize("where", ["file/outbox", "/proc/outbox"])
async def test_an_outbox_that_cannot_be_written_is_found_at_start(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CRM_OUTBOX", str(tmp_path / where))
    with pytest.raises(follow_up.OutboxUnusable, match="outbox cannot be used") as raised:
        async with Harness(crm.service):
            pass
    assert raised.value.exit_code == 1
    assert not isinstance(raised.value, DatabaseUnusable)


# SMTP


@dataclass
class Smtp:
    """An SMTP server that keeps what it is given.

    Attributes:
        failing: how many e-mails it refuses first.
        rude: it answers QUIT with an error.
        slow: seconds that it takes to store an e-mail.
        silent: it stores an e-mail and hangs up.
    """

    failing: int = 0
    rude: bool = False
    slow: float = 0
    silent: bool = False
    bodies: list[bytes] = field(default_factory=list)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while line := (await reader.readline()).decode():
            verb = line.strip().upper()
            self.commands.append(verb.split()[0])
            if verb.startswith("EHLO"):
                answer = "250 shop"
            elif verb.startswith("MAIL") and self.failing:
                self.failing -= 1
                answer = "451 try again later"
            elif verb.startswith("DATA"):
                writer.write(b"354 go on\r\n")
                body = await reader.readuntil(b"\r\n.\r\n")
                await asyncio.sleep(self.slow)
                self.bodies.append(body.removesuffix(b".\r\n"))
                self.mails.append(message_from_bytes(body[:-5], policy=policy.SMTP))
                if self.silent:
                    break
                answer = "250 stored"
            else:
                if verb.startswith("RCPT"):
                    self.recipients.append(line.strip())
                answer = "421 go away" if verb == "QUIT" and self.rude else "221 bye" if verb == "QUIT" else "250 ok"
            writer.write(f"{answer}\r\n".encode())
            await writer.drain()
            if verb == "QUIT":
                break
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def smtp_server(smtp: Smtp) -> AsyncIterator[Smtp]:
    server = await asyncio.start_server(smtp.serve, "127.0.0.1", 0)
    smtp.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield smtp


async def test_the_email_goes_out_by_smtp_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = making.placed(ADA.customer_id)
    async with smtp_server(Smtp(slow=0.05, rude=True)) as smtp:
        monkeypatch.setenv("CRM_SMTP_URL", smtp.url)
        async with Harness(crm.service) as shop:
            await shop.publish(ADA)
            await shop.settled()
            for _ in range(5):
                await shop.publish(order)
            await shop.settled()
            await all_come(ADA.customer_id, State.SENT)
            assert shop.dead("crm") == []
    assert [mail["Message-ID"] for mail in smtp.mails] == [f"<{order.order_id}@example.com>"]
    assert smtp.recipients == ["rcpt TO:<ada@example.com>"]
    assert smtp.bodies == [(data / "outbox" / f"{order.order_id}.eml").read_bytes()]


async def test_of_several_senders_one_sends(database: Database, tmp_path: Path) -> None:
    orders = [making.placed(ADA.customer_id) for _ in range(10)]
    await take(database, ADA, *orders)
    async with smtp_server(Smtp()) as smtp, AsyncExitStack() as stack:
        for _ in range(3):
            other = await stack.enter_async_context(open_database(crm.Settings().database, Base.metadata))
            await stack.enter_async_context(sender.Sender(other, tmp_path, SecretStr(smtp.url)).running())
        await all_come(ADA.customer_id, State.SENT)
    assert len(smtp.mails) == len({mail["Message-ID"] for mail in smtp.mails}) == len(orders)


async def test_a_server_that_refuses_for_a_while_gets_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with smtp_server(Smtp(failing=1)) as smtp:
        monkeypatch.setenv("CRM_SMTP_URL", smtp.url)
        async with Harness(crm.service) as shop:
            await shop.publish(ADA)
            await shop.settled()
            await shop.publish(making.placed(ADA.customer_id))
            await shop.settled()
            await until(lambda: smtp.failing == 0)
            assert smtp.mails == []
            await all_come(ADA.customer_id, State.SENT)
            assert shop.dead("crm") == []
    assert len(smtp.mails) == 1


async def test_without_an_answer_it_is_in_doubt_until_a_person_decides(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = making.placed(ADA.customer_id)
    await take(database, ADA, order)
    async with smtp_server(Smtp(silent=True)) as smtp:
        async with sender.Sender(database, tmp_path, SecretStr(smtp.url)).running():
            await all_come(ADA.customer_id, State.IN_DOUBT)
            smtp.silent = False
            looked = counted(monkeypatch, sender, "waiting")
            await until(lambda: len(looked) > 2)
            assert len(smtp.mails) == 1
        run = Commands()
        for words in (["list"], ["show", str(ADA.customer_id)]):
            shown = await asyncio.to_thread(run, "crm", *words)
            assert f"follow-up of order {order.order_id} in doubt:" in " ".join(shown.stdout.split())
        released = await asyncio.to_thread(run, "crm", "release", str(order.order_id))
        assert (released.exit_code, "is sent again" in released.stdout) == (0, True)
        async with sender.Sender(database, tmp_path, SecretStr(smtp.url)).running():
            await all_come(ADA.customer_id, State.SENT)
        assert len(smtp.mails) == 2
        again = await asyncio.to_thread(run, "crm", "release", str(order.order_id))
        assert (again.exit_code, "is sent." in again.stderr) == (2, True)


async def test_whoever_claimed_an_email_and_died_leaves_it_in_doubt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = making.placed(ADA.customer_id)
    await take(database, ADA, order)
    assert await sender.claim(database, order.order_id)
    assert not await sender.claim(database, order.order_id)
    assert await sender.waiting(database) == []
    assert await come(ADA.customer_id) == [(State.SENDING, None)]
    assert await sender.release(database, order.order_id) is State.SENDING
    monkeypatch.setattr(sender, "CLAIM", -sender.CLAIM)
    assert await come(ADA.customer_id) == [(State.IN_DOUBT, None)]
    assert await sender.release(database, order.order_id) is State.IN_DOUBT
    assert len(await sender.waiting(database)) == 1
    assert await sender.release(database, uuid4()) is None


async def test_no_password_goes_to_a_server_without_encryption(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async with smtp_server(Smtp()) as smtp:
        monkeypatch.setenv("CRM_SMTP_URL", smtp.url.replace("//", "//shop:geheim@"))
        async with Harness(crm.service) as shop:
            await shop.publish(ADA)
            await shop.settled()
            await shop.publish(making.placed(ADA.customer_id))
            await shop.settled()
            [reason] = await have_reasons(ADA.customer_id)
    assert "no password is sent" in reason
    assert "geheim" not in "".join([reason, *capfd.readouterr()])
    assert (smtp.mails, "AUTH" in smtp.commands) == ([], False)


@pytest.mark.parametrize(
    "url", ["http://geheim@host", "geheim", "smtp://", "smtp://u:geheim@host:0", "smtp://geheim:x"]
)
def test_a_wrong_smtp_url_is_refused_and_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_SMTP_URL", url)
    with pytest.raises(ValidationError, match="smtp_url") as raised:
        crm.Settings()
    assert "geheim" not in str(raised.value)
    result = Commands()("crm", "list")
    assert result.exit_code == 2
    assert "CRM_SMTP_URL" in result.stderr
    assert "geheim" not in result.output


# The commands


def test_records_can_be_looked_at(data: Path) -> None:
    order = making.placed(ADA.customer_id)

    async def fill() -> None:
        async with Harness(crm.service) as shop:
            await shop.publish(ADA)
            await shop.settled()
            await shop.publish(order)
            await shop.settled()
            await all_come(ADA.customer_id, State.SENT)

    asyncio.run(fill())
    run = Commands()
    [record] = run.json("crm", "list")
    assert run.json("crm", "show", str(ADA.customer_id)) == record
    [known] = record["orders"]
    assert (known["order_id"], known["status"]) == (str(order.order_id), "placed")
    assert known["email"] == str(data / "outbox" / f"{order.order_id}.eml")
    assert known["follow_up"] == {"state": "sent", "reason": None}
    assert "Ada Lovelace" in run("crm", "list").stdout
    assert "Ada Lovelace" in run("crm", "show", str(ADA.customer_id)).stdout
    unknown = run("crm", "show", str(uuid4()))
    assert unknown.exit_code == 2
    assert "There is no customer" in unknown.stderr
