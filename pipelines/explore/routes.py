"""Every path that the explorer answers: the page asks for items by number, never for files."""

from collections.abc import Callable
from http import HTTPStatus

from pipelines.explore.explorer import Explorer
from pipelines.explore.replies import Query, Reply, json_reply
from pipelines.explore.search import Filter

Route = Callable[[Explorer, Query], Reply]


def _run(explorer: Explorer, _: Query) -> Reply:
    return json_reply(explorer.run())


def _fields(explorer: Explorer, query: Query) -> Reply:
    return json_reply(explorer.fields(query.text("asked") == "1"))


def _items(explorer: Explorer, query: Query) -> Reply:
    wanted = Filter(
        kind=query.text("kind"),
        turn=query.text("turn"),
        a=query.number("a", 0),
        b=query.number("b", 0),
        cluster=query.text("cluster"),
        field=query.text("field"),
        value=query.text("value"),
    )
    return json_reply(explorer.items(wanted, query.number("from", 0)))


def _item(explorer: Explorer, query: Query) -> Reply:
    return json_reply(explorer.item(query.number("item")))


def _maps(explorer: Explorer, query: Query) -> Reply:
    return json_reply(explorer.maps(query.number("item"), query.number("image", 0)))


def _similarity(explorer: Explorer, query: Query) -> Reply:
    item, image = query.number("item"), query.number("image", 0)
    return json_reply(explorer.similarity(item, image, query.number("patch")))


def _picture(explorer: Explorer, query: Query) -> Reply:
    found = explorer.picture(query.number("item"), query.number("image", 0))
    return Reply(HTTPStatus.OK, "image/png", found)


def _outlines(explorer: Explorer, query: Query) -> Reply:
    found = explorer.outlines(query.number("item"), query.number("image", 0))
    return Reply(HTTPStatus.OK, "image/png", found)


def _nothing(_: Explorer, __: Query) -> Reply:
    return Reply(HTTPStatus.NO_CONTENT, "text/plain", b"")


def _ask(explorer: Explorer, query: Query) -> Reply:
    return json_reply(explorer.ask(query.text("arm"), query.number("item")))


def _question(explorer: Explorer, query: Query) -> Reply:
    item, image = query.number("item"), query.number("image", 0)
    return json_reply(explorer.question(item, image, query.text("question")))


READS: dict[str, Route] = {
    "/api/run": _run,
    "/api/fields": _fields,
    "/api/items": _items,
    "/api/item": _item,
    "/api/maps": _maps,
    "/api/similarity": _similarity,
    "/picture": _picture,
    "/outlines": _outlines,
    "/favicon.ico": _nothing,
}
ACTS: dict[str, Route] = {"/api/ask": _ask, "/api/question": _question}
