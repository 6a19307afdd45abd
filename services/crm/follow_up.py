"""The follow-up e-mail: one for each order, as text and as HTML.

It is written into the outbox folder under the order's id, so a second one would be the same file. When SMTP is
configured it is sent, too. When and by whom: see `services.crm.sender`.
"""

from __future__ import annotations

import os
import smtplib
import ssl
import tempfile
from contextlib import closing, suppress
from datetime import datetime
from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pydantic import SecretStr

from broker import BrokerError
from services.contracts import NewOrderPlaced
from services.crm.store import Customer

TIMEOUT = 10.0  # s for each answer of the SMTP server


class NoAnswer(Exception):
    """The connection broke while the SMTP server had the e-mail: it may be on its way, or not."""


class OutboxUnusable(BrokerError):
    """The outbox folder cannot be written. A `BrokerError`, so that it ends the start with one clear line."""


def one_line(text: str) -> str:
    """Text from elsewhere as one printable line: nothing that could begin a header or steer a terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
_templates.filters["one_line"] = one_line


def compose(order: NewOrderPlaced, customer: Customer, *, sender: str, date: datetime) -> EmailMessage:
    """The follow-up e-mail of an order. The same arguments give the same bytes."""
    name = one_line(customer.name)
    content = {"name": name, "order_id": order.order_id, "lines": order.lines, "total": order.total}
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))  # any server takes it
    message["From"] = sender
    # "=?" begins an encoded word, which the email package would decode, line breaks included.
    message["To"] = Address(name.replace("=?", "= ?"), *customer.email.rsplit("@", 1))
    message["Subject"] = f"Your order {order.order_id}"
    message["Date"] = format_datetime(date)
    message["Message-ID"] = f"<{order.order_id}@{sender.rsplit('@', 1)[-1]}>"
    message.set_content(_templates.get_template("follow_up.txt").render(content))
    message.add_alternative(_templates.get_template("follow_up.html").render(content), subtype="html")
    message.set_boundary(f"follow-up-{order.order_id}")
    return message


def prepare(outbox: Path) -> None:
    """Create the outbox folder, and make sure that it can be written.

    Raises:
        OutboxUnusable: it cannot.
    """
    try:
        outbox.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=outbox) as probe:
            probe.write(b"follow-up")
    except OSError as error:
        raise OutboxUnusable(f"The outbox {outbox.absolute()} cannot be used: {error}") from error


def outbox_path(outbox: Path, order_id: UUID) -> Path:
    """Where an order's follow-up lies."""
    return outbox / f"{order_id}.eml"


def write(message: bytes, path: Path) -> None:
    """Write an e-mail into the outbox, whole or not at all. One that lies there already stays."""
    if path.exists():
        return
    descriptor, unfinished = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def send(message: bytes, url: SecretStr) -> None:
    """Send an e-mail by SMTP.

    Args:
        url: ``smtp://user:password@host:port`` (encrypted with STARTTLS where the server offers it) or ``smtps://``.

    Raises:
        OSError: the server cannot be reached, or has refused. With a login and no encryption, nothing is sent.
        NoAnswer: nobody knows whether it is sent.
    """
    parts = urlsplit(url.get_secret_value())
    tls = ssl.create_default_context()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(parts.hostname or "", parts.port or 465, timeout=TIMEOUT, context=tls)
    else:
        server = smtplib.SMTP(parts.hostname or "", parts.port or 25, timeout=TIMEOUT)
    with closing(server):
        server.ehlo()
        encrypted = parts.scheme == "smtps"
        if not encrypted and server.has_extn("starttls"):
            server.starttls(context=tls)
            encrypted = True
        if parts.username:
            if not encrypted:
                raise smtplib.SMTPNotSupportedError("The server offers no encryption, so no password is sent to it.")
            server.login(unquote(parts.username), unquote(parts.password or ""))
        headers = message_from_bytes(message, policy=SMTP)
        sender, recipient = (headers[name].addresses[0].addr_spec for name in ("From", "To"))
        try:
            server.sendmail(sender, [recipient], message)
        except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused):
            raise
        except OSError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        with suppress(smtplib.SMTPException, OSError):
            server.quit()  # the server has the e-mail; a goodbye that fails must not send it again
