"""The small SMTP server counts what a client sends."""

from __future__ import annotations

import asyncio
import smtplib
from email.message import EmailMessage
from urllib.parse import urlsplit
from uuid import UUID

from tests.exactly_once.smtp import post_office

ORDER = UUID(int=7)


async def test_each_email_is_counted_by_its_order() -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Message-ID"] = "shop@example.com", "ada@example.com", f"<{ORDER}@shop>"
    message.set_content(".\n.. a line of dots does not end it\n")
    async with post_office() as post:
        where = urlsplit(post.url)

        def send() -> None:
            with smtplib.SMTP(where.hostname or "", where.port or 0) as client:
                client.send_message(message)
                client.send_message(message)

        await asyncio.to_thread(send)
        assert post.by_order() == {ORDER: 2}
