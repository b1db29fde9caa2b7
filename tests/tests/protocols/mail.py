"""A server and a client of SMTP (RFC 5321), in which the server speaks first.

mail.py serve PORT
mail.py send PORT
"""

import smtplib
import sys
import time

LETTER = "Subject: a letter\r\n\r\n" + "It is long.\r\n" * 100_000


class Inbox:
    async def handle_DATA(self, server, session, envelope):
        lines = envelope.content.count(b"It is long.")
        print(f"a letter of {lines} lines", flush=True)
        return "250 taken"


def serve(port):
    from aiosmtpd.controller import Controller

    Controller(Inbox(), hostname="127.0.0.1", port=port).start()
    while True:
        time.sleep(3600)


def send(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=120) as server:
        server.sendmail("a@example.com", ["b@example.com"], LETTER)


{"serve": serve, "send": send}[sys.argv[1]](int(sys.argv[2]))
