"""The page's skeleton in Jinja; every value is escaped when it is filled in.

Choosing among samples and colours is done by radio buttons and CSS: a page without scripts works everywhere.
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }} · etr report</title>
<style>
{{ style }}
</style>
</head>
<body>
<header>
<p class="kicker">etr report</p>
<h1>{{ title }}</h1>
<p class="quiet">{{ made }}</p>
{% if sections|length > 2 %}
<nav aria-label="Contents"><ol>
{% for section in sections %}
<li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
</ol></nav>
{% endif %}
</header>
<main>
{% for section in sections %}
<section id="s{{ loop.index }}">
{% if section.source %}
<p class="kicker">{{ section.source }}</p>
{% endif %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.text|paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table %}
{% set header, rows = section.table %}
{% set right = rows|numeric %}
<div class="scroll"><table>
<thead><tr>
{% for name in header %}
<th scope="col"{% if right[loop.index0] %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
{% for cell in row %}
<td{% if right[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if section.figures %}
<div class="figures">
{% for figure in section.figures %}
<figure{% if figure.wide %} class="wide"{% endif %}>
<img src="{{ figure.source }}" width="{{ figure.width }}" alt="{{ figure.name or figure.caption }}">
<figcaption>{% if figure.name %}<b>{{ figure.name }}</b> {% endif %}{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% for sample in section.samples %}
<article class="sample">
<pre class="prompt">{{ sample.prompt }}</pre>
<p class="quiet">expected answer: <b>{{ sample.answer }}</b></p>
<div class="answers">
{% for when, text, reward in (("before training", sample.before, sample.reward_before),
                              ("after training", sample.after, sample.reward_after)) %}
{% if text is not none %}
<div class="answer{% if reward and reward > 0 %} good{% endif %}">
<p class="quiet">{{ when }} <span class="reward">reward {{ "%g"|format(reward) }}</span></p>
<pre>{{ text }}</pre>
</div>
{% endif %}
{% endfor %}
</div>
</article>
{% endfor %}
{% if section.token_samples %}
{% include "tokens" %}
{% endif %}
{% for name, text in section.details %}
<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""

TOKENS = """\
{% set n = loop.index %}
<div class="tokens">
<span class="quiet">colour by</span>
{% for key, name in (("c", "gradient coefficient"), ("e", "entropy"), ("l", "probability"), ("r", "ratio")) %}
{% set id = "m%d%s"|format(n, key) %}
<input type="radio" class="pick by-{{ key }}" name="m{{ n }}" id="{{ id }}"{% if loop.first %} checked{% endif %}>
<label for="{{ id }}">{{ name }}</label>
{% endfor %}
<p class="legend of-c">pushed down
<i class="c-4">strongly</i><i class="c-2">weakly</i><i>not at all</i><i class="c2">weakly</i><i class="c4">strongly</i>
pushed up; <i class="x">clipped</i> has an advantage and no gradient</p>
<p class="legend of-e">nats
<i>below 0.1</i><i class="e1">0.1</i><i class="e2">0.5</i><i class="e3">1</i><i class="e4">2 and more</i></p>
<p class="legend of-l">probability when sampled
<i>above 0.9</i><i class="l1">0.9</i><i class="l2">0.5</i><i class="l3">0.1</i><i class="l4">below 0.01</i></p>
<p class="legend of-r">less probable after the update
<i class="r-4">r &lt; 0.61</i><i class="r-3">0.82</i><i class="r-2">0.95</i><i>about 1</i><i class="r2">1.05</i>\
<i class="r3">1.22</i><i class="r4">r &gt; 1.65</i> more probable</p>
<div class="records">
<span class="quiet">step</span>
{% for sample in section.token_samples %}
<input type="radio" class="pick" name="r{{ n }}" id="r{{ n }}-{{ loop.index }}"{% if loop.last %} checked{% endif %}>
<label for="r{{ n }}-{{ loop.index }}">{{ sample.label }}</label>
<article class="sample">
<pre class="prompt">{{ sample.prompt }}</pre>
<p class="quiet">step {{ sample.label }}; expected answer: <b>{{ sample.answer }}</b></p>
{% for completion in sample.completions %}
<div class="answer{% if completion.good %} good{% endif %}">
<p class="quiet">{{ completion.note }}</p>
<pre>{% for token in completion.tokens %}<i class="{{ token.marks }}" data-n="{{ token.numbers }}">{{ token.text }}</i>\
{% endfor %}</pre>
</div>
{% endfor %}
</article>
{% endfor %}
</div>
</div>
"""
