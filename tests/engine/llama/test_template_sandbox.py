"""Chat templates that take too long or make too much are ended; those of real models are not noticed."""

from __future__ import annotations

import threading

import pytest

from llmaas.engine.llama.chat import ChatTemplate
from llmaas.engine.llama.template_sandbox import MOST_CPU_S, TemplateLimit, TemplateSandbox
from llmaas.errors import BadRequest, ShuttingDown
from llmaas.records import Message
from tests.support.cpu_time import at_most

_ROWS = "{% for i in range(99999) %}"
ENDLESS = {
    "loops in loops": f"{_ROWS * 4}{{% endfor %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "a recursive loop": "{% for a in [1] * 9 recursive %}{{ loop([1] * 9) if loop.depth < 60 }}{% endfor %}",
    "macros that call themselves twice": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(90) }}",
    "maps in maps": "{{ ([range(99999)] * 99999)|map('list')|map('length')|sum }}",
    "tests over and over": "{{ ([-1] * 99999)|select('in', range(99999)|list)|list|length }}",
}
LARGE = {
    "a product": "{{ 'x' * 10**10 }}",
    "a product with a list": "{{ ([1] * 10**10)|length }}",
    "a power": "{{ 10**99999 }}",
    "a text doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a text added": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a block doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}"
    "{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}{% endfor %}",
    "its own text": "{% set x = 'x' * 99999 %}" + _ROWS + "{{ x }}{% endfor %}",
    "a join": "{{ ('x' * 99999).join(['x'] * 99999) }}",
    "a join by the filter": "{{ (['x'] * 99999)|join('x' * 99999) }}",
    "replacements": "{{ ('x' * 99999).replace('x', 'x' * 99999) }}",
    "replacements by the filter": "{{ ('x' * 99999)|replace('x', 'x' * 99999) }}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "a width from elsewhere": "{{ '%*d' % (10**10, 1) }}",
    "a width by the filter": "{{ '%9999999999d'|format(1) }}",
    "a width by the method": "{{ '{:9999999999}'.format(1) }}",
    "a padded text": "{{ 'x'.ljust(10**10) }}",
    "an indented text": "{{ ('\\n' * 99999)|indent(99999) }}",
    "padded lists": "{{ [1]|batch(10**10, 'x')|list|length }}",
    "indented JSON": "{{ ([1] * 99999)|tojson(indent=99999) }}",
    "a list that holds itself twice": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "such a list as JSON": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
    "such a list joined": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ 'a' ~ n.x }}",
    "such lists compared": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "such lists sorted": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ ([n.x, n.y]|map('list')|sort)[0]|length }}",
}


def refusal(source: str) -> str:
    with pytest.raises(BadRequest) as refused:
        ChatTemplate(source).render([Message("user", "hi")], answer=True)
    return refused.value.message


@pytest.mark.parametrize("name", ENDLESS)
def test_a_rendering_ends(name: str) -> None:
    sandbox = TemplateSandbox()
    template = sandbox.from_string(ENDLESS[name])
    with at_most(1.0), sandbox.metered(0.2), pytest.raises(TemplateLimit, match="takes too long"):
        template.render()


@pytest.mark.parametrize("name", LARGE)
def test_a_rendering_makes_no_more_than_is_allowed(name: str) -> None:
    with at_most(MOST_CPU_S):
        message = refusal(LARGE[name])
    assert "it makes" in message or "it writes or compares" in message, message


def test_a_rendering_ends_when_the_daemon_stops() -> None:
    source = "{% if messages|length > 5 %}" + ENDLESS["loops in loops"] + "{% endif %}"
    template, ended = ChatTemplate(source), threading.Event()

    def render() -> None:
        with pytest.raises(ShuttingDown):
            template.render([Message("user", "hi")] * 6, answer=True)
        ended.set()

    thread = threading.Thread(target=render)
    thread.start()
    template.stop()
    assert ended.wait(MOST_CPU_S / 2)
    thread.join()


def test_what_templates_use_gives_what_jinja_gives() -> None:
    source = (
        "{% set n = namespace(last=-1, all=[]) %}"
        "{% for m in messages %}{% if m.role == 'user' and not (m.content|trim)[:1] == '<' %}"
        "{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}"
        "{% if 1 < loop.index0 <= 2 %}mid{% endif %}{% if loop.previtem is defined %}<{% endif %}"
        "{% set n.all = n.all + [m.content.split('i')|join('-')] %}"
        "{% if loop.first %}{% continue %}{% endif %}{% endfor %}{{ n.all|tojson }}{{ 'a' ~ 1 ~ none }}"
        "{{ '%03d' % n.last }}{{ '{:>4}'.format('x') }}{{ 'ab'.replace('a', 'c') }}"
        "{{ messages|map(attribute='role')|unique|list }}{{ {'a': 1}.items()|list }}{{ nothing }}{{ 2**5 * 3 % 7 }}"
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages[1:]|length }}{{ 'x' in 'xy' }}"
        "{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m('a') }}"
        "{% call m('k') %}called{% endcall %}{% filter upper %}loud{% endfilter %}{% set b %}block{% endset %}{{ b }}"
    )
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "i"},
    ]
    sandbox = TemplateSandbox(extensions=["jinja2.ext.loopcontrols"])
    with sandbox.metered():
        found = sandbox.from_string(source).render(messages=messages)
    assert found == (
        "1/2,2/2<[\"h-\", \"-\"]a1None001   xcb['system', 'user', 'assistant'][('a', 1)]512TrueackccalledLOUDblock"
    )


def test_a_long_conversation_is_rendered() -> None:
    messages = [Message("user" if i % 2 == 0 else "assistant", "Some words. " * 10) for i in range(4000)]
    with at_most(MOST_CPU_S / 4):
        text = ChatTemplate(None).render(messages, answer=True)
    assert text.count("<|im_start|>") == 4001


def test_the_limit_is_for_one_rendering() -> None:
    sandbox = TemplateSandbox()
    template = sandbox.from_string("{% for i in range(n) %}{{ 'x' * 99999 }}{% endfor %}")
    for n in (10, 80, 10):
        with sandbox.metered():
            template.render(n=n)
    with sandbox.metered(), pytest.raises(TemplateLimit):
        template.render(n=100)
