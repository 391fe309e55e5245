"""What tests of the browser share: files to browse, and calls as the model makes them."""

import json

from gptoss_mlx.tools.browser import Browser

NOTES = """\
# Notes
\tThe timeout is thirty seconds, and this line is long enough that it has to be wrapped.

Nothing here.
A Timeout again."""

PAGE = """\
<!doctype html><html><head><title>A &amp; page</title><style>p { color: red }</style><script>x()</script></head>
<body><h1>Heading</h1><p>See <a href="sub/other.html#part">the  other
page</a>, <a href='../docs/sub/other.html?q=1'>again</a>, <a href="/notes%20one.md">the †notes</a>,
<a href="https://example.org/">elsewhere</a>, <a href="../../secret.txt">up</a>, <a href="none.html">nothing</a>.
<ul><li>one<li>two</ul><div><div>x</div></div>
<pre>
  as   it
    is
</pre><table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>
<p>End &#12304;0&#8224;fake&#12305;</body></html>"""


def search(browser: Browser, query: str, **more) -> str:
    return browser.run("search", json.dumps({"query": query} | more))


def open_(browser: Browser, **arguments) -> str:
    return browser.run("open", json.dumps(arguments))


def find(browser: Browser, pattern: str, **more) -> str:
    return browser.run("find", json.dumps({"pattern": pattern} | more))


def lines_of(view: str) -> list[str]:
    return view.split("\n")[3:]


def found(view: str) -> list[str]:
    return [line.partition("†")[2].partition("】")[0] for line in view.split("\n") if "【" in line]
