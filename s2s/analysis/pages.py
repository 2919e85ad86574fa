"""Pages: templates filled in, everything escaped, in one file that needs no network and no server.

A template extends ``base.html`` and fills its blocks: ``title`` and ``content``, and where it needs them ``summary``
(under the heading), ``navigation``, ``footer``, ``style`` and ``script`` (with ``super()``; constants only, never a
value) and ``policy`` (more directives for the Content-Security-Policy). Every value is escaped, its control and
bidirectional characters too. Filters beside Jinja's own:

    {{ svg | picture }}      a chart or a heat map, in a frame that scrolls where it is too wide
    {{ 0.12345 | number }}   0.1235, as on the axes of charts
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from s2s.analysis import charts, heatmap
from s2s.analysis.svg import number, visible

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = re.compile(r"<style>(.*?)</style>\n?", re.DOTALL)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def render(template: str, **values: object) -> str:
    """The page that ``template`` makes of ``values``; raises jinja2.UndefinedError for a value that is missing."""
    return _environment().get_template(template).render(values)


def embedded(svg: str) -> str:
    """A picture without its style sheet, which every page has. Raises ValueError for what is no picture of ours.

    Charts and heat maps escape the text in them, so the first style sheet is theirs, and nothing else could be one.
    """
    if not svg.startswith(('<svg class="chart" ', '<svg class="heat" ')):
        raise ValueError("not a chart or a heat map")
    return _STYLE.sub("", svg, count=1)


def policy_of(page: str) -> str:
    """The Content-Security-Policy that a rendered page asks for, to be sent as a header too."""
    found = _POLICY.search(page)
    if found is None:
        raise ValueError("the page has no Content-Security-Policy")
    return found[1]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": _picture, "number": number, "fingerprint": _fingerprint}
    styles = [found[1] for svg in (charts.style(), heatmap.style()) if (found := _STYLE.search(svg))]
    environment.globals["picture_styles"] = Markup("\n".join(styles))
    return environment


def _shown(value: Any) -> Any:
    """What is printed for a value: text cannot reorder or disturb what stands round it; lines and tabs stay."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return re.sub(r"[^\n\t]+", lambda found: visible(found[0]), value)
    return value


def _picture(svg: str) -> Markup:
    return Markup('<div class="scroll">{}</div>').format(Markup(embedded(svg)))


def _fingerprint(text: str) -> str:
    """How a Content-Security-Policy names the only content that it allows."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
