"""The page's skeleton in Jinja; every value is escaped when it is filled in."""

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
{% for name, text in section.details %}
<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
