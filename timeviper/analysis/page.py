"""An analysis as one HTML file: no network, no script, light and dark, readable on a telephone, with every number.

Words are escaped; only drawings (`timeviper/svg.py`) bring marks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from timeviper.files import write_whole
from timeviper.package import VERSION
from timeviper.svg import STYLE, Drawing

LONG = 24  # characters of a row's name that gets room also where the table must be pushed aside
MOST_BYTES = 5_000_000  # what mail and code hosting still show


class PageTooLarge(ValueError):
    """A page that no mail would take."""


@dataclass(frozen=True)
class Grid:
    """A table: what its caption names."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    """Numbers stand right, None is shown as a dash."""
    folded: bool = False
    """Shown when one opens it: the numbers behind a picture."""


@dataclass(frozen=True)
class Figure:
    drawing: Drawing
    caption: str
    """How to read it, a sentence or two."""
    table: Grid | None = None
    """Every number drawn."""


@dataclass(frozen=True)
class Section:
    title: str
    text: Sequence[str] = ()
    """Paragraphs before the figures."""
    figures: Sequence[Figure] = ()
    tables: Sequence[Grid] = ()
    warnings: Sequence[str] = ()
    commands: Sequence[str] = ()
    """To be typed; behind the text."""


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    """What was looked at, and the one thing that was found."""
    sections: Sequence[Section]
    facts: Sequence[tuple[str, object]] = ()
    """Run, digest, samples, settings: how to get the page again."""
    notes: Sequence[str] = ()
    """What not to conclude."""


def write_page(path: Path, page: Page) -> Path:
    """The file, whole or not there. Raises PageTooLarge beyond 5 MB, with the sections that take most."""
    html = render(page)
    if (size := len(html.encode())) > MOST_BYTES:
        weights = {s.title: sum(len(f.drawing.body) for f in s.figures) for s in page.sections}
        heavy = sorted(weights, key=lambda title: -weights[title])[:3]
        told = "; ".join(f"{title}: {weights[title] / 1e6:.1f} MB of pictures" for title in heavy)
        raise PageTooLarge(
            f"{path}: the page would have {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}, and was not written "
            f"({told}). Show fewer samples, frames or layers, or a shorter video."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, html)


def render(page: Page) -> str:
    """The page as text."""
    return _TEMPLATE.render(page=page, style=STYLE, version=VERSION)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if value != value else f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_HTML = """\
{%- macro grid(table) -%}
{%- set holder = 'details' if table.folded else 'div' -%}
<{{ holder }} class="grid">{% if table.folded %}<summary>{{ table.caption }}</summary>{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.caption }}"><table>
<caption{% if table.folded %} class="hidden"{% endif %}>{{ table.caption }}</caption>
<thead><tr>{% for name in table.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for value in row %}
{%- if loop.first %}<th scope="row"{% if value is long %} class="long"{% endif %}>{{ value | cell }}</th>
{%- else %}<td{% if value is numeric %} class="n"{% endif %}>{{ value | cell }}</td>{% endif %}
{%- endfor %}</tr>
{% endfor %}</tbody></table></div></{{ holder }}>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{{ page.title }}</title><link rel="icon" href="data:,">
<style>
:root{--fore:#1f2328;--soft:#57606a;--ground:#fff;--rule:#d0d7de;--warn:#9a3412;--tint:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--fore:#e6edf3;--soft:#9da7b3;--ground:#0d1117;--rule:#3d444d;--warn:#fdba74;--tint:#161b22}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--fore);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem;overflow-wrap:break-word}h1{font-size:1.5rem;line-height:1.25}
h2{font-size:1.2rem;margin-top:2rem;border-top:1px solid var(--rule);padding-top:1rem}
a{color:inherit}.lead{font-size:1.05rem}.warn{border-left:4px solid var(--warn);padding:.25rem .75rem;color:var(--warn)}
figure{margin:0}.figures{display:flex;flex-wrap:wrap;gap:1.5rem 1rem;margin:1rem 0}
figcaption,small,summary{color:var(--soft)}figcaption,summary{font-size:.9rem}
.scroll{overflow-x:auto}.scroll svg.tv{display:block;max-width:100%;height:auto}
.thin{display:none}
@media(max-width:700px){.wide{display:none}.thin{display:block}.scroll svg.tv{max-width:none}}
table{border-collapse:collapse;font-size:.9rem}caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
tbody th{font-weight:400}.n{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem 1rem;
background:var(--tint);padding:.5rem .75rem}dt{color:var(--soft)}dd{margin:0;min-width:0}
pre{overflow-x:auto;background:var(--tint);padding:.5rem .75rem;font-size:.85rem}.long{min-width:14rem}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
{{ style | safe }}
</style></head>
<body><main>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
{% if page.facts %}<dl>{% for name, value in page.facts %}<dt>{{ name }}</dt><dd>{{ value | cell }}</dd>{% endfor %}
</dl>{% endif %}
{% if page.sections | length > 3 %}<nav aria-label="Contents"><ul>
{% for section in page.sections %}<li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}</ul></nav>{% endif %}
{% for section in page.sections %}
<section aria-labelledby="s{{ loop.index }}"><h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% for words in section.warnings %}<p class="warn"><strong>Warning:</strong> {{ words }}</p>{% endfor %}
{% for words in section.text %}<p>{{ words }}</p>{% endfor %}
{% for words in section.commands %}<pre tabindex="0" aria-label="command">{{ words }}</pre>{% endfor %}
{% if section.figures %}<div class="figures">{% endif %}
{% for figure in section.figures %}
<figure style="width:min(100%,{{ [figure.drawing.width, 280] | max }}px)">
<div class="scroll" tabindex="0" role="region" aria-label="{{ figure.drawing.title }}">
{% if figure.drawing.narrow %}<div class="wide">{{ figure.drawing.inline() | safe }}</div>
<div class="thin">{{ figure.drawing.narrow.inline() | safe }}</div>
{%- else %}{{ figure.drawing.inline() | safe }}{% endif %}</div>
<figcaption>{{ figure.caption }}</figcaption>
<details><summary>In words</summary><p>{{ figure.drawing.desc }}</p></details>
{% if figure.table %}{{ grid(figure.table) }}{% endif %}</figure>
{% endfor %}
{% if section.figures %}</div>{% endif %}
{% for table in section.tables %}{{ grid(table) }}{% endfor %}
</section>
{% endfor %}
{% if page.notes %}<section aria-labelledby="notes"><h2 id="notes">What not to conclude</h2><ul>
{% for words in page.notes %}<li>{{ words }}</li>{% endfor %}</ul></section>{% endif %}
<p><small>timeviper {{ version }}</small></p>
</main></body></html>
"""


def _environment() -> Environment:
    made = Environment(autoescape=True, trim_blocks=False, keep_trailing_newline=True)
    made.filters["cell"] = _cell
    made.tests["numeric"] = _is_number
    made.tests["long"] = lambda value: len(str(value)) > LONG
    return made


_TEMPLATE = _environment().from_string(_HTML)
