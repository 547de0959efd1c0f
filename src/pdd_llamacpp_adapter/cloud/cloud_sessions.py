"""What keeps the requests of one conversation on one replica: a header that we send, and cookies that we get.

Each conversation has cookies of its own (llm-d's ``llm-d-session`` names a replica). None of them goes with
another's requests.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from email.message import Message
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, TypeVar
from urllib.request import Request

from pdd_core.session_id import SESSION_HEADER, check_session_header, session_id

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.cloud.cloud_gate import Response

Kept = TypeVar("Kept")

_MOST = 512
"""Conversations, and handoffs, that are remembered."""
_MOST_COOKIES = 8
"""Per conversation."""
_LONGEST_COOKIE = 4096
"""Characters of a ``Set-Cookie``, as in RFC 6265."""


@dataclass(frozen=True, slots=True)
class CloudSession:
    """One conversation, as the cloud's side knows it."""

    id: str
    cookies: CookieJar = field(default_factory=CookieJar)


class CloudSessions:
    """The conversations with one cloud.

    Args:
        header: the header that names the conversation; empty for none.

    Raises:
        ConfigurationError: as `check_session_header`.
    """

    def __init__(self, header: str = SESSION_HEADER) -> None:
        self._header = check_session_header(header)
        self._sessions: OrderedDict[str, CloudSession] = OrderedDict()
        self._handoffs: OrderedDict[str, CloudSession] = OrderedDict()

    def begin(self, name: str, handoff_id: str | None) -> CloudSession:
        """Return the conversation called `name`; all later calls for `handoff_id` belong to it."""
        session = self._sessions.get(name) or CloudSession(name)
        _keep(self._sessions, name, session)
        if handoff_id is not None:
            _keep(self._handoffs, handoff_id, session)
        return session

    def of_handoff(self, handoff_id: str) -> CloudSession:
        """Return the conversation of a handoff; one that another process began has a name of its own."""
        return self._handoffs.get(handoff_id) or self.begin(session_id(handoff_id), handoff_id)

    def headers(self, session: CloudSession | None, url: str) -> dict[str, str]:
        """Return what goes with a request of `session` to `url`."""
        if session is None:
            return {}
        headers = {self._header: session.id} if self._header else {}
        if len(session.cookies):
            request = Request(url)  # noqa: S310 - never opened: the jar wants to know where the cookies would go
            session.cookies.add_cookie_header(request)
            if (cookies := request.get_header("Cookie")) is not None:
                headers["Cookie"] = cookies
        return headers

    def cookie_names(self, handoff_id: str) -> list[str]:
        """Return the names of the cookies that go with what is asked about a handoff."""
        return sorted({cookie.name for cookie in self.of_handoff(handoff_id).cookies})

    @staticmethod
    def received(session: CloudSession | None, response: Response) -> None:
        """Keep the cookies of a response; those that are too many or too long, or no plain text, are left out."""
        given = [] if session is None else response.headers.get_list("set-cookie")[:_MOST_COOKIES]
        message = Message()
        for line in given:
            if len(line) <= _LONGEST_COOKIE and line.isascii() and line.isprintable():
                message["Set-Cookie"] = line
        if session is None or not message:
            return
        known = {(cookie.domain, cookie.path, cookie.name) for cookie in session.cookies}
        request = Request(str(response.request.url))  # noqa: S310
        for cookie in session.cookies.make_cookies(_Headers(message), request):  # type: ignore[arg-type]
            place = (cookie.domain, cookie.path, cookie.name)
            if place in known or len(known) < _MOST_COOKIES:
                known.add(place)
                session.cookies.set_cookie_if_ok(cookie, request)


@dataclass(frozen=True, slots=True)
class _Headers:
    """As much of ``urllib``'s response as a jar reads."""

    message: Message

    def info(self) -> Message:
        return self.message


def _keep(kept: OrderedDict[str, Kept], key: str, value: Kept) -> None:
    """Put it in as the latest, and forget the oldest of too many."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MOST:
        kept.popitem(last=False)
